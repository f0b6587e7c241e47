"""Baseline: the picture's tokens at a lower resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenprune.core.merging import mean_weights
from tokenprune.core.selection import Selection
from tokenprune.errors import BadInput
from tokenprune.methods.base import BudgetMethod, View
from tokenprune.methods.origin import Origin


@dataclass(frozen=True)
class Downsample(BudgetMethod):
    """Pools the grid of tokens to k cells of nearly equal size: what a smaller picture would give, at equal count.

    Frames share k evenly; a frame's cells lie in rows of nearly equal height, a row's cells have nearly equal width,
    and each cell becomes its mean, at the place of its middle token. Needs the whole grid.
    """

    name: ClassVar[str] = "downsample"
    paper: ClassVar[str] = "baseline"
    year: ClassVar[int] = 0
    kind: ClassVar[str] = "baseline"
    reads_grid: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("ours")
    waits: ClassVar[str] = "how large frames are and how their rows lie is read from the tokens that are left"

    def choose(self, view: View) -> Selection:
        k, n = self.budget(view), view.count
        if view.grids and n != sum(t * h * w for t, h, w in view.grids):
            raise BadInput(f"downsample pools the whole grid, but {n} tokens are left of it. Make it the first stage.")
        part, frame, row, column = (axis[0] for axis in view.cells(self.name))
        group = torch.zeros(n, dtype=torch.long, device=part.device)
        planes = part * (frame.max() + 1) + frame
        sizes = [int(size) for size in planes.unique_consecutive(return_counts=True)[1]]
        shares = _shares(k, sizes)
        start = used = 0
        for size, share in zip(sizes, shares, strict=True):
            own = slice(start, start + size)
            if share:
                group[own] = used + _cells(row[own], column[own], share)
            else:
                group[own] = -1
            start, used = start + size, used + share
        number = torch.arange(n, device=group.device)
        cells = torch.arange(k, device=group.device)
        middle = (group[None] == cells[:, None]).float()
        middle = (middle @ torch.stack([row, column], 1).float()) / middle.sum(-1, keepdim=True)
        wanted = middle[group.clamp(min=0)]
        far = (row - wanted[:, 0]).abs() + (column - wanted[:, 1]).abs()
        best = torch.full((k,), float("inf"), device=group.device)
        real = group >= 0
        best = best.scatter_reduce(0, group[real], far[real], "amin")
        nearest = torch.where(real & (far <= best[group.clamp(min=0)]), number, n)
        anchor = torch.full((k,), n, device=group.device).scatter_reduce(0, group.clamp(min=0), nearest, "amin")
        index, order = anchor.sort()
        group = torch.where(real, order.argsort()[group.clamp(min=0)], -1)
        weights = mean_weights(index[None], group[None]).expand(view.spans, -1, -1)
        return Selection(index.expand(view.spans, -1), weights)


def _shares(k: int, sizes: list[int]) -> list[int]:
    """Split k over frames of these sizes, in proportion, none above its size."""
    total, done, seen, shares = sum(sizes), 0, 0, []
    for size in sizes:
        seen += size
        shares.append(seen * k // total - done)
        done += shares[-1]
    return shares


def _cells(row: torch.Tensor, column: torch.Tensor, k: int) -> torch.Tensor:
    """int64 [n]: the cell 0 ... k - 1 of each token of a frame with these rows and columns."""
    height, width = int(row.max()) + 1, int(column.max()) + 1
    bands = min(max(round((k * height / width) ** 0.5), -(-k // width), 1), height, k)
    per_band = [(i + 1) * k // bands - i * k // bands for i in range(bands)]
    first = torch.tensor([0, *per_band]).cumsum(0)[:-1].to(row.device)
    band = row * bands // height
    count = torch.tensor(per_band, device=row.device)[band]
    return first[band] + column * count // width
