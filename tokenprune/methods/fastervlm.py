"""FasterVLM: tokens that the encoder's CLS row attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.methods.base import ScoreMethod, View, keep_option, source_option
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class FasterVLM(ScoreMethod):
    """FasterVLM (Zhang et al., arXiv 2412.01818 v1): the k highest of the CLS row of the penultimate
    encoder layer, mean over heads, in raster order. `source="received"` is for encoders without a CLS token.
    """

    name: ClassVar[str] = "fastervlm"
    paper: ClassVar[str] = "arXiv 2412.01818v1"
    year: ClassVar[int] = 2024
    kind: ClassVar[str] = "attention"
    origin: ClassVar[Origin] = Origin("code", "Theia-4869/FasterVLM", "f5d5f120")
    differences: ClassVar[tuple[Difference, ...]] = (RENUMBERED,)

    keep: Keep = keep_option(0.05)
    source: str = source_option("cls")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("saliency", self.source),)

    def score(self, view: View) -> Tensor:
        return view["saliency"].float()
