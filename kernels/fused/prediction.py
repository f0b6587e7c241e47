"""Triton: anchored prediction, the rows of a picture side by side, each a step behind the one above."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune_kernels.dispatch import launcher
from tokenprune_kernels.prediction import METRICS

VALUES = 4096  # at once


@triton.jit
def _distance(difference, METRIC: tl.constexpr):
    """What a stretch of differences adds to a distance."""
    if METRIC == 0:
        found = tl.max(tl.abs(difference), 0)
    elif METRIC == 1:
        found = tl.sum(tl.abs(difference), 0)
    else:
        found = tl.sum(difference * difference, 0)
    return found


@triton.jit
def _added(total, more, METRIC: tl.constexpr):
    return tl.maximum(total, more) if METRIC == 0 else total + more


@triton.jit
def _within(total, tau, values, METRIC: tl.constexpr):
    """Whether a distance is at most tau."""
    if METRIC == 1:
        total = total / values
    elif METRIC == 2:
        total = tl.sqrt(total / values)
    return total <= tau


@triton.jit
def _predict(x, stands, h, w, values, tau, METRIC: tl.constexpr, BLOCK: tl.constexpr):
    """One row of one picture. `stands` begins at -1, so what the row above has written tells that it is there; rows
    start in their order, and wait for earlier ones alone."""
    row, span = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x += span * h * w * values
    stands += span * h * w + row * w
    lane = tl.arange(0, BLOCK)
    left = row * 0
    corner = row * 0
    for column in range(w):
        cell = row * w + column
        above = left
        if row > 0:
            above = tl.atomic_add(stands - w + column, 0, sem="acquire")
            while above < 0:
                above = tl.atomic_add(stands - w + column, 0, sem="acquire")
        from_left = 0.0  # distances: of the upper left to the left and to the one above, of the group itself to both
        from_above = 0.0
        own_left = 0.0
        own_above = 0.0
        for start in range(0, values, BLOCK):
            at = start + lane
            there = at < values
            own = tl.load(x + cell.to(tl.int64) * values + at, mask=there, other=0.0)
            a = tl.load(x + left.to(tl.int64) * values + at, mask=there, other=0.0)
            b = tl.load(x + above.to(tl.int64) * values + at, mask=there, other=0.0)
            c = tl.load(x + corner.to(tl.int64) * values + at, mask=there, other=0.0)
            from_left = _added(from_left, _distance(c - a, METRIC), METRIC)
            from_above = _added(from_above, _distance(c - b, METRIC), METRIC)
            own_left = _added(own_left, _distance(own - a, METRIC), METRIC)
            own_above = _added(own_above, _distance(own - b, METRIC), METRIC)
        up = _within(from_left, tau, values, METRIC) & (_within(from_above, tau, values, METRIC) == 0)
        up = ((up & (row > 0)) | (column == 0)) & (row > 0)
        by = tl.where(up, above, left)
        goes = _within(tl.where(up, own_above, own_left), tau, values, METRIC) & (cell > 0)
        left = tl.where(goes, by, cell)
        corner = above
        tl.atomic_xchg(stands + column, left, sem="release")


@launcher
def predict_anchored(x: Tensor, tau: float, metric: str) -> Tensor:
    """See `tokenprune_kernels.prediction.predict_anchored`; one launch."""
    spans, h, w, values = x.shape
    stands = torch.full((spans, h * w), -1, dtype=torch.int32, device=x.device)
    block = min(triton.next_power_of_2(values), VALUES)
    _predict[(h, spans)](
        x.contiguous(), stands, h, w, values, tau, METRICS.index(metric), block, num_warps=8 if block > 1024 else 4
    )
    return stands.long()
