"""Coarse-to-fine selection: what the base image is looked at for decides which tiles are looked into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection, ranks, to_device, top_k
from tokenprune.core.tiles import layout, tile_numbers, tile_shown
from tokenprune.methods.base import Method, View, keep_option, option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class CoarseToFine(Method):
    """The training-free part of LRS-VQA's selection for large pictures (Luo et al., ICCV 2025, arXiv 2503.07588).

    What the last prompt token pays to the base image (mean over heads) is scaled so that its 5 % and 95 % quantiles are
    0 and 1; tokens above `threshold` are selected, and each votes for the tile that shows its place. Of k tokens the
    selected ones of the base image come first, then tile by tile, most votes first, each tile's tokens by attention,
    then what is left of the base image. A picture without tiles keeps its k best.

    The paper ranks by a trained module distilled from the LLM's attention and goes down a pyramid of levels; here
    the LLM's own attention ranks, and the model's tiles are the only finer level. The budget is ours. Where tiles are
    spans of their own (InternVL, SmolVLM), how they lie is not known, and the squarest rectangle is assumed.
    """

    name: ClassVar[str] = "coarse_to_fine"
    paper: ClassVar[str] = "arXiv 2503.07588"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "attention, tiles"
    reads_grid: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "VisionXLab/LRS-VQA", "1b3b6cd4", "its training-free part")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("the language model's own attention ranks", "the published ranking module has to be trained"),
        Difference(
            "k is given and the model's tiles are the only finer level", "the published pyramid cuts its own tiles"
        ),
    )
    default_at: ClassVar[int] = 2
    scope: ClassVar[str] = "item"

    keep: Keep = keep_option(0.25)
    threshold: float = option(0.2, "scaled attention above which a token of the base image is selected")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("attention_row"),)

    def select(self, view: View) -> Selection:
        paid, k, n = view.mean_over_heads("attention_row"), self.budget(view), view.count
        part, _, row, column = view.cells(self.name)
        tile = tile_numbers(view.grids, part, row, column) if len(view.grids) > 1 else torch.zeros_like(part)
        base = tile == 0
        if len(view.grids) < 2 or not base.any():
            return Selection(top_k(paid, k))
        coarse = paid.masked_fill(~base, float("nan"))
        low, high = torch.nanquantile(coarse, to_device([0.05, 0.95], paid.device), dim=-1)[..., None]
        selected = base & ((paid - low) / (high - low).clamp(min=1e-12) > self.threshold)
        rows, columns = layout(view.grids)
        votes = torch.zeros(view.spans, rows * columns + 1, dtype=torch.long, device=paid.device)
        votes = votes.scatter_add(1, torch.where(selected, tile_shown(view.grids, row, column) + 1, 0), selected.long())
        votes[:, 0] = -1
        turn = ranks(votes).gather(1, tile.clamp(max=rows * columns)) + 1
        turn = torch.where(selected, 0, torch.where(base, rows * columns + 2, turn))
        return Selection(top_k(-(turn * n + ranks(paid)), k))
