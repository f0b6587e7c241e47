"""Triton: density peaks, rows of all frames side by side."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune_kernels.dispatch import launcher


@triton.jit
def _rows(distance, there, row, n, BLOCK: tl.constexpr):
    """Distances [ROWS, BLOCK] of these rows of a span, infinite to what is not there."""
    column = tl.arange(0, BLOCK)
    seen = column < n
    if there is not None:
        seen = seen & (tl.load(there + column, mask=seen, other=0) != 0)
    place = row.to(tl.int64)[:, None] * n + column[None, :]
    return tl.load(distance + place, mask=(row < n)[:, None] & seen[None, :], other=float("inf"))


@triton.jit
def _densities(distance, there, dense, widest, n, neighbours, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    span = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = row < n
    if there is not None:
        there += span * n
        here = here & (tl.load(there + row, mask=here, other=0) != 0)
    d = _rows(distance + span * n * n, there, row, n, BLOCK)
    finite = d < float("inf")
    wanted = tl.minimum(tl.sum(finite.to(tl.int32), 1), neighbours)
    # The bits of positive numbers are in the numbers' order: the last wanted one, found from its highest bit down.
    near = tl.maximum(d, 0.0)
    if near.dtype == tl.float64:
        bits = near.to(tl.int64, bitcast=True)
        top = 62
    else:
        bits = near.to(tl.int32, bitcast=True)
        top = 30
    one = tl.full([ROWS], 1, bits.dtype)
    last = one * 0
    for i in range(top + 1):
        candidate = last | (one << (top - i))
        nearer = tl.sum((bits < candidate[:, None]).to(tl.int32), 1)
        last = tl.where(nearer < wanted, candidate, last)
    within = bits < last[:, None]
    rest = (wanted - tl.sum(within.to(tl.int32), 1)).to(near.dtype)
    edge = last.to(near.dtype, bitcast=True)
    total = tl.sum(tl.where(within, d * d, 0.0), 1) + rest * edge * edge
    tl.store(dense + span * n + row, tl.exp(-(total / tl.maximum(wanted, 1))), mask=row < n)
    far = tl.max(tl.where(finite & here[:, None], d, 0.0), 1)
    tl.store(widest + span * n + row, far, mask=row < n)


@triton.jit
def _gaps(distance, there, dense, widest, scores, n, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    span = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    own = row < n
    if there is not None:
        there += span * n
    column = tl.arange(0, BLOCK)
    others = tl.load(dense + span * n + column, mask=column < n, other=0.0)
    farthest = tl.max(tl.load(widest + span * n + column, mask=column < n, other=0.0), 0)
    mine = tl.load(dense + span * n + row, mask=own, other=0.0)
    d = _rows(distance + span * n * n, there, row, n, BLOCK)
    twin = (others[None, :] == mine[:, None]) & (column[None, :] < row[:, None]) & (d == 0)
    gap = tl.min(tl.where((others[None, :] > mine[:, None]) | twin, d, float("inf")), 1)
    score = mine * tl.where(gap == float("inf"), farthest, gap)
    if there is not None:
        score = tl.where(tl.load(there + row, mask=own, other=0) != 0, score, float("-inf"))
    tl.store(scores + span * n + row, score, mask=own)


@launcher
def peak_scores(distance: Tensor, neighbours: int, there: Tensor | None) -> Tensor:
    """See `tokenprune_kernels.density.peak_scores`; two launches."""
    distance = distance.contiguous()
    spans, n = distance.shape[:2]
    scores, dense, widest = distance.new_empty(3, spans, n).unbind(0)
    if scores.numel():
        seen = None if there is None else there.contiguous().view(torch.uint8)
        block = max(triton.next_power_of_2(n), 16)
        tile = {"ROWS": max(1, min(8, 4096 // block)), "BLOCK": block, "num_warps": 8 if block > 512 else 4}
        grid = (triton.cdiv(n, tile["ROWS"]), spans)
        _densities[grid](distance, seen, dense, widest, n, min(neighbours, n), **tile)
        _gaps[grid](distance, seen, dense, widest, scores, n, **tile)
    return scores
