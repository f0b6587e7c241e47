"""Renumbering of position ids after tokens were removed (the `compact` policy)."""

from __future__ import annotations

import torch
from torch import Tensor


def close_gaps(values: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Close the gaps that removed tokens leave on one axis of a span.

    values: int64 [n], position ids of the span on this axis; keep: bool [n], which tokens survive.
    Returns new offsets int64 [n], counted from the first surviving value (meaningful where `keep`), and how many
    positions the survivors take up (0 where none survives). Distances between neighbouring values that both survive
    stay what they were, so keeping everything changes nothing.
    """
    ordered, order = values.sort()
    step = ordered.diff(prepend=ordered[:1])
    rank = (step > 0).long().cumsum(0)
    rank_of = torch.empty_like(rank).scatter(0, order, rank)
    alive = torch.zeros_like(rank).scatter_reduce(0, rank_of, keep.long(), "amax")
    step_of_rank = torch.zeros_like(rank).scatter_add(0, rank, step)
    reach = (alive * step_of_rank).cumsum(0)
    first = torch.where(alive > 0, reach, reach.max()).min()
    offsets = (reach - first)[rank_of]
    return offsets, torch.where(keep.any(), torch.where(keep, offsets, 0).max() + 1, 0)


def compact(positions: Tensor, keep: Tensor, spans: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Renumber one row as if the removed tokens had never been there.

    positions: int64 [C, n], one row per RoPE axis (1, or 3 for M-RoPE); keep: bool [n]; spans: for each image or
    video, ascending, the int64 columns it occupies. Text keeps its distances; a span closes its gaps on each axis by
    itself, and what follows it starts after the largest position it still uses.
    Returns int64 [C, n] (meaningful where `keep`) and a 0-dim tensor: by how much the end of the row moved down.
    """
    result = positions.clone()
    moved = positions.new_zeros(())
    for i, columns in enumerate(spans):
        old = positions[:, columns]
        start, end = old.min(), old.max()
        size = positions.new_zeros(())
        for axis, values in enumerate(old):
            offsets, used = close_gaps(values, keep[columns])
            result[axis, columns] = start - moved + offsets
            size = torch.maximum(size, used)
        moved = moved + (end - start + 1 - size)
        after = columns[-1] + 1
        until = spans[i + 1][0] if i + 1 < len(spans) else positions.shape[-1]
        result[:, after:until] = positions[:, after:until] - moved
    return result, moved


def runs(columns: Tensor, rank: Tensor | None = None) -> list[Tensor]:
    """Cut ascending int64 columns [n] where they (or their ranks, int64 [n], among the columns that count) are not
    consecutive."""
    if len(columns) == 0:
        return []
    edges = ((columns if rank is None else rank).diff() > 1).nonzero().flatten() + 1
    return list(torch.tensor_split(columns, edges.cpu()))
