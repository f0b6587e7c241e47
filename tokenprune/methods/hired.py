"""HiRED: a budget shared between the whole picture and its tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection, ranks, top_k
from tokenprune.core.tiles import tile_numbers, tile_shown
from tokenprune.methods.base import Method, View, fill_option, keep_option, option, rounding_option, source_option
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class HiRED(Method):
    """HiRED (Arif et al., AAAI 2025, arXiv 2408.10945); for pictures in tiles.

    Of the budget B = int(n * keep), the base image gets min(int(B * alpha), its size). The rest goes to the tiles in
    proportion to how many of the base image's top int(N * (1 - alpha)) tokens by the first encoder layer's CLS row lie
    in each (`crop_map`: below). Every partition keeps its highest tokens by the penultimate layer's CLS row. A picture
    without tiles keeps its highest int(n * keep). `source="received"` is for encoders without CLS.

    `crop_map="strips"` is the published code: the base image's tokens are split into as many stretches as there are
    tiles, in raster order. `crop_map="tiles"` is the paper: each tile is asked about the part of the base image that
    it shows. The code truncates every share and leaves the remainder unused (`fill="none"`); by default it goes to the
    most attended tokens that are left, so that B is B. The paper sums attention where the code counts tokens.
    """

    name: ClassVar[str] = "hired"
    paper: ClassVar[str] = "arXiv 2408.10945"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "attention"
    origin: ClassVar[Origin] = Origin("code", "hasanar1f/HiRED", "502d6dd7")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "the remainder of all shares goes to the most attended tokens",
            "the budget is kept exactly; the code leaves it unspent",
            {"fill": "none"},
        ),
        Difference(
            "tokens of the base image are counted, in strips",
            'so the code; the paper sums attention in the part that a tile shows (`crop_map="tiles"`)',
        ),
        RENUMBERED,
    )
    scope: ClassVar[str] = "item"

    keep: Keep = keep_option(0.2)
    rounding: str = rounding_option("down")
    alpha: float = option(0.5, "share of the budget for the base image", low=0.0, high=1.0)
    crop_map: str = option("strips", "which part of the base image a tile shows: strips or tiles", ("strips", "tiles"))
    fill: str = fill_option("attention", "what the truncated remainder goes to")
    source: str = source_option("cls")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("saliency", self.source), Need("saliency_first", self.source))

    def select(self, view: View) -> Selection:
        scores, k = view["saliency"].float(), self.budget(view)
        if len(view.grids) < 2:
            return Selection(top_k(scores, k))
        part, _, row, column = view.cells(self.name)
        crop = tile_numbers(view.grids, part, row, column)
        crops = int(crop.max())
        base = crop == 0
        size = base.sum(-1, keepdim=True)
        share = torch.minimum(torch.full_like(size, int(k * self.alpha)), size)
        sizes = torch.stack([(crop == i).sum(-1) for i in range(1, crops + 1)], dim=-1)
        votes = self._votes(view["saliency_first"].float(), base, crops, tile_shown(view.grids, row, column))
        rest = torch.minimum(k - share, sizes.sum(-1, keepdim=True))
        parts = (votes / votes.sum(-1, keepdim=True).clamp(min=1) * rest).long()
        parts = torch.minimum(parts, sizes)
        budgets = torch.cat([share, parts], dim=1).gather(1, crop)
        within_crop = torch.zeros_like(crop)
        for i in range(crops + 1):
            own = crop == i
            within_crop = torch.where(own, ranks(scores.masked_fill(~own, float("-inf"))), within_crop)
        kept = within_crop < budgets
        if self.fill == "attention":
            return Selection(top_k(ranks(scores).neg() + kept * view.count, k))
        return Selection.of(kept)

    def _votes(self, first: Tensor, base: Tensor, crops: int, shown: Tensor) -> Tensor:
        """int64 [S, crops]: top tokens of the base image in the part that each tile shows (tiles: `shown` [S, n])."""
        size = base.sum(-1, keepdim=True)
        top = ranks(first.masked_fill(~base, float("-inf"))) < (size * (1 - self.alpha)).long()
        if self.crop_map == "strips":
            shown = (base.long().cumsum(-1) - 1) * crops // size.clamp(min=1)
        hits = torch.zeros(len(base), crops, dtype=torch.long, device=base.device)
        return hits.scatter_add(1, shown.clamp(0, crops - 1), (top & base).long())
