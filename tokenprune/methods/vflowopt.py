"""VFlowOpt: an importance map for all stages, and what is dropped recycled cell by cell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.merging import mean_weights
from tokenprune.core.selection import Selection, mask_of, ranks, top_k
from tokenprune.methods.base import Method, Schedule, ScoreMethod, View, keep_option, option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class VFlowOpt(Method):
    """VFlowOpt (Yang et al., ICCV 2025, arXiv 2508.05211).

    Importance of a token: what the encoder's queries that receive over `threshold` times the mean attention pay to it,
    plus `entropy_weight` times the softmax, over the base image or the tiles, of the entropies (in bits) of the
    patches' grey values. Before the LLM the most important tokens stay; the others are grouped by cells of `cell` x
    `cell` tokens of their grid (a real number), and each cell's importance-weighted mean goes on at the place of its
    most important member. Before a third and two thirds of the layers (9, 18 of 28) `vflowopt_drop` keeps `later` of
    what is left, by the same importance, and nothing is recycled. Defaults are the published settings for 10 %; the
    recipes hold those for 25 and 50 %.

    The published code recycles in pictures with tiles alone (`recycle_in="tiled"`; by default in all), and there
    keeps k - int(n / cell**2) tokens as they are and one for every cell in use (`budget_of="published"`); by default
    kept and recycled tokens together are exactly `keep`. Its rows of tiles end with a separator that counts in n and
    always stays, and its entropies are taken of each tile, of pixels cast to bytes, which wraps below 0. Where no query
    passes the threshold, all of them count. Importance is read in the layer whose output becomes the features (the
    code: layer 25 of SigLIP's 27). The search for the settings is not part of the method.
    """

    name: ClassVar[str] = "vflowopt"
    paper: ClassVar[str] = "arXiv 2508.05211"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "attention, recycling, staged"
    reads_grid: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "sihany077/VFlowOpt", "129eeefb")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "kept and recycled tokens together are k",
            "the published count varies with the number of cells in use",
            {"budget_of": "published"},
        ),
        Difference(
            "every picture is recycled",
            "so that none loses what is dropped; the code does it in tiled pictures alone",
            {"recycle_in": "tiled"},
        ),
        Difference(
            "importance is read in the layer whose output becomes the features",
            "one layer serves every encoder; the code reads layer 25 of 27",
        ),
        Difference("grey values are those of the pixels", "the code casts values below 0 to bytes, which wraps"),
    )
    scope: ClassVar[str] = "item"
    waits: ClassVar[str] = "how many cells are in use follows from the tokens that are left"

    keep: Keep = keep_option(0.1166)
    threshold: float = option(39.26, "how many times the mean attention makes a query global")
    entropy_weight: float = option(0.0, "weight of the entropy of the pixels")
    cell: float = option(17.39, "side of a recycling cell in tokens", low=1)
    recycle_in: str = option("all", "pictures whose tokens are recycled: all, or those with tiles", ("all", "tiled"))
    budget_of: str = option(
        "total", "whether keep counts the cells in use (total) or an expected number of them", ("total", "published")
    )
    later: tuple[float, ...] = option((1.0, 0.6011), "what survives the later stages of what is left")

    @property
    def needs(self) -> tuple[Need, ...]:
        return _needs(self.threshold, self.entropy_weight)

    def schedule(self, layers: int) -> Schedule:
        later = [1.0 if self.keep == 1.0 else share for share in self.later]
        steps = [(max(i, round(9 * i * layers / 28)), share) for i, share in enumerate(later, 1)]
        return [(0, self), *((at, self.derive(VFlowOptDrop, keep=share)) for at, share in steps)]

    def select(self, view: View) -> Selection:
        importance, k, n = importance_of(view, self.entropy_weight), self.budget(view), view.count
        plain = self.recycle_in == "tiled" and len(view.grids) < 2
        if plain or k in (0, n):
            return Selection(top_k(importance, k))
        rank = ranks(importance)
        cell = self._cells(view)
        cells = int(cell.max()) + 1
        published = self.budget_of == "published"
        kept = rank < max(k - (int(n / self.cell**2) if published else cells), 0)
        first = torch.full((view.spans, cells), n, device=rank.device)
        first = first.scatter_reduce(1, cell, torch.where(kept, n, rank), "amin")
        stands = rank == first.gather(1, cell)  # the best of its cell stands for it
        stay = kept | stands
        chosen = Selection.of(stay) if published else Selection(top_k(stay * n - rank, k))
        index, there = chosen.index, chosen.valid
        taken = mask_of(index, n) if there is None else stay
        stand = stands.gather(1, index) if there is None else stands.gather(1, index) & there
        own = torch.where(stand, cell.gather(1, index), cells)
        survivor = torch.arange(index.shape[1], device=rank.device).expand(view.spans, -1)
        survivor = torch.full((view.spans, cells + 1), -1, device=rank.device).scatter(1, own, survivor)
        group = torch.where(taken & ~stands, -1, survivor.gather(1, cell))
        return replace(chosen, weights=mean_weights(index, group, importance.clamp(min=1e-12)))

    def _cells(self, view: View) -> Tensor:
        """int64 [S, n]: number of each token's cell, counted over all parts and frames."""
        part, frame, row, column = view.cells(self.name)
        down, across = (row / self.cell).long(), (column / self.cell).long()
        plane = part * (frame.max() + 1) + frame
        return (plane * (down.max() + 1) + down) * (across.max() + 1) + across


@dataclass(frozen=True)
class VFlowOptDrop(ScoreMethod, stage_of=VFlowOpt):
    """VFlowOpt inside the LLM: the same importance, nothing recycled."""

    name: ClassVar[str] = "vflowopt_drop"
    scope: ClassVar[str] = "item"

    keep: Keep = keep_option(0.6011)
    threshold: float = option(39.26, "how many times the mean attention makes a query global")
    entropy_weight: float = option(0.0, "weight of the entropy of the pixels")

    @property
    def needs(self) -> tuple[Need, ...]:
        return _needs(self.threshold, self.entropy_weight)

    def schedule(self, layers: int) -> Schedule:
        return [(max(1, layers // 3), self)]

    def score(self, view: View) -> Tensor:
        return importance_of(view, self.entropy_weight)


def _needs(threshold: float, entropy_weight: float) -> tuple[Need, ...]:
    importance = (Need("saliency", "global", threshold),)
    return (*importance, Need("entropy")) if entropy_weight else importance


def importance_of(view: View, entropy_weight: float) -> Tensor:
    """float32 [S, n]: what global queries pay to each token, and the entropies of each part against each other."""
    importance = view["saliency"].float()
    if not entropy_weight:
        return importance
    entropy = view["entropy"].float()
    if len(view.grids) < 2:
        return importance + entropy_weight * entropy.softmax(-1)
    part = view.cells("vflowopt")[0]
    spread = torch.stack(
        [entropy.masked_fill(part != i, float("-inf")).softmax(-1).nan_to_num() for i in range(len(view.grids))]
    )
    return importance + entropy_weight * spread.sum(0)
