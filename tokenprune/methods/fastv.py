"""FastV: tokens that the last prompt token attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.methods.base import ScoreMethod, View, keep_option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class FastV(ScoreMethod):
    """FastV (Chen et al., ECCV 2024, arXiv 2403.06764).

    Score of token j before layer K: the mean over heads of the attention that the last prompt token pays to j in layer
    K-1, softmax over the whole causal row with RoPE. The k highest stay, k = round(n * keep), half to even. The paper's
    default is K = 2 and half of the tokens.

    The paper says that all other tokens' attention is averaged; the published code reads the last row only, and so do
    we. The code prunes by batch element 0, ignores padding and, at K = 0, keeps a random subset: here each row
    is scored by itself, and K = 0 is refused (use `random`).
    """

    name: ClassVar[str] = "fastv"
    paper: ClassVar[str] = "arXiv 2403.06764"
    year: ClassVar[int] = 2024
    kind: ClassVar[str] = "attention"
    origin: ClassVar[Origin] = Origin("code", "pkunlp-icler/FastV", "d1659729")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "every row is ranked by its own attention, and padding is heeded",
            "the code ranks by batch element 0 and ignores padding",
        ),
        Difference(
            "before the first layer it is refused", "the code keeps a random subset there, which is the method `random`"
        ),
    )
    needs: ClassVar[tuple[Need, ...]] = (Need("attention_row"),)
    default_at: ClassVar[int] = 2

    keep: Keep = keep_option(0.5)

    def score(self, view: View) -> Tensor:
        return view.mean_over_heads("attention_row")
