"""FoPru: tokens that the vision encoder itself attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.selection import ranks
from tokenprune.methods.base import ScoreMethod, View, keep_option, option, source_option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class FoPru(ScoreMethod):
    """Our reading of FoPru (Jiang et al., arXiv 2411.14164): focal pruning before the LLM, survivors in raster order.

    Significance of a token: the attention it receives in the penultimate layer of the vision encoder, mean over heads
    and queries (`source="received"`), or the CLS token's attention to it (`source="cls"`). `strategy="rank"` keeps the
    k most significant tokens. `strategy="row"` ranks the rows of the grid by their mean and keeps whole rows; where k
    is not a multiple of the row length, the next row gives its most significant tokens, so that exactly k stay.

    Only the abstract and its readers' summaries were at hand, and no code: the formula of the significance, the layer
    and the fill-up of the row strategy are ours.
    """

    name: ClassVar[str] = "fopru"
    paper: ClassVar[str] = "arXiv 2411.14164"
    year: ClassVar[int] = 2024
    kind: ClassVar[str] = "attention"
    origin: ClassVar[Origin] = Origin("abstract")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("the row strategy fills up to k", "whole rows seldom are the budget"),
    )

    keep: Keep = keep_option(0.25)
    strategy: str = option("rank", "rank: best tokens; row: best rows of the grid", choices=("rank", "row"))
    source: str = source_option("received")

    @property
    def reads_grid(self) -> bool:
        return self.strategy == "row"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("saliency", self.source),)

    def score(self, view: View) -> Tensor:
        scores = view["saliency"].float()
        return scores if self.strategy == "rank" else self._by_row(view, scores)

    def _by_row(self, view: View, scores: Tensor) -> Tensor:
        """Scores in which every token of a better row stands before every token of a worse one."""
        part, frame, row, _ = view.cells("fopru with strategy='row'")
        rows = ((part * (frame.max() + 1) + frame) * (row.max() + 1) + row).long()
        total = scores.new_zeros(len(scores), int(rows.max()) + 1)
        mean = total.scatter_add(1, rows, scores) / total.scatter_add(1, rows, torch.ones_like(scores)).clamp(min=1)
        best_first = ranks(mean).gather(1, rows)
        return -(best_first * view.count + ranks(scores))
