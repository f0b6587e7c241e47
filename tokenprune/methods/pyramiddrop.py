"""PyramidDrop: fewer tokens from stage to stage, ranked by the layer that comes next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.methods.base import Schedule, ScoreMethod, View, keep_option, option, rounding_option
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class PyramidDrop(ScoreMethod):
    """PyramidDrop (Xing et al., CVPR 2025, arXiv 2410.17247).

    Score before layer k: the mean over heads of what the last instruction token would pay in layer k itself (its norm,
    projections and RoPE on the current hidden states, softmax over the causal row). By name it stands before a
    quarter, half and three quarters of the layers (8, 16, 24 of 32), keeping keep, keep**2 and keep**3 of the tokens
    that there were at first, truncated; a single stage (`at=`) keeps `keep`.

    The published code renumbers positions after every stage (`positions="compact"`), fails for grouped-query models and
    left padding, and reads the first image of a sample alone. Here all of these work, and every span is ranked.
    """

    name: ClassVar[str] = "pyramiddrop"
    paper: ClassVar[str] = "arXiv 2410.17247"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "attention, staged"
    origin: ClassVar[Origin] = Origin("code", "Cooperx521/PyramidDrop", "6444f304")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "grouped-query models, left padding, several pictures",
            "the code fails on the first two and reads the first picture of a sample alone",
        ),
        RENUMBERED,
    )
    default_at: ClassVar[int] = 8

    keep: Keep = keep_option(0.5, "what survives each stage: a fraction of what the stage before it kept, or tokens")
    rounding: str = rounding_option("down")
    of: str = option(
        "original", "what a fraction counts from: tokens that the stage sees, or before any", ("current", "original")
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("attention_row", "next"),)

    def schedule(self, layers: int) -> Schedule:
        if isinstance(self.keep, int):
            return [(max(1, layers // 4), self)]
        return [(max(i, i * layers // 4), replace(self, keep=self.keep**i, of="original")) for i in (1, 2, 3)]

    def score(self, view: View) -> Tensor:
        return view.mean_over_heads("attention_row")
