"""Triton: density peaks a frame at a time, nearest targets, and mixtures that skip what weighs nothing."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune_kernels.dispatch import launcher

TOKENS, TARGETS, WIDTH = 32, 32, 64  # tile of products
MIXED, SOURCES, LANES = 16, 64, 128  # tile of mixtures


@triton.jit
def _peaks(distance, there, dense, scores, n, neighbours, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    span = tl.program_id(0).to(tl.int64)
    distance += span * n * n
    dense += span * n
    scores += span * n
    column = tl.arange(0, BLOCK)
    inside = column < n
    seen = inside
    if there is not None:
        seen = inside & (tl.load(there + span * n + column, mask=inside, other=0) != 0)
    farthest = tl.max(tl.zeros([BLOCK], distance.dtype.element_ty), 0)
    for first in range(0, n, ROWS):
        row = first + tl.arange(0, ROWS)
        own = row < n
        here = own
        if there is not None:
            here = own & (tl.load(there + span * n + row, mask=own, other=0) != 0)
        place = row.to(tl.int64)[:, None] * n + column[None, :]
        d = tl.load(distance + place, mask=own[:, None] & seen[None, :], other=float("inf"))
        real = here[:, None] & (d < float("inf"))
        farthest = tl.maximum(farthest, tl.max(tl.max(tl.where(real, d, 0.0), 1), 0))
        total = tl.zeros([ROWS], distance.dtype.element_ty)
        count = tl.zeros([ROWS], tl.int32)
        for _ in range(neighbours):
            nearest = tl.min(d, 1)
            finite = nearest < float("inf")
            total += tl.where(finite, nearest * nearest, 0.0)
            count += finite.to(tl.int32)
            d = tl.where(column[None, :] == tl.argmin(d, 1)[:, None], float("inf"), d)
        tl.store(dense + row, tl.exp(-(total / tl.maximum(count, 1))), mask=own)
    tl.debug_barrier()  # densities of all rows are compared with below
    others = tl.load(dense + column, mask=inside, other=0.0)
    for first in range(0, n, ROWS):
        row = first + tl.arange(0, ROWS)
        own = row < n
        mine = tl.load(dense + row, mask=own, other=0.0)
        place = row.to(tl.int64)[:, None] * n + column[None, :]
        d = tl.load(distance + place, mask=own[:, None] & seen[None, :], other=float("inf"))
        twin = (others[None, :] == mine[:, None]) & (column[None, :] < row[:, None]) & (d == 0)
        gap = tl.min(tl.where((others[None, :] > mine[:, None]) | twin, d, float("inf")), 1)
        score = mine * tl.where(gap == float("inf"), farthest, gap)
        if there is not None:
            here = tl.load(there + span * n + row, mask=own, other=0) != 0
            score = tl.where(here, score, float("-inf"))
        tl.store(scores + row, score, mask=own)


@launcher
def peak_scores(distance: Tensor, neighbours: int, there: Tensor | None) -> Tensor:
    """See `tokenprune_kernels.density.peak_scores`; one launch, one program a frame."""
    distance = distance.contiguous()
    spans, n = distance.shape[:2]
    scores, dense = distance.new_empty(2, spans, n).unbind(0)
    if scores.numel():
        seen = None if there is None else there.contiguous().view(torch.uint8)
        block = max(triton.next_power_of_2(n), 16)
        rows = max(1, min(8, 4096 // block))
        _peaks[(spans,)](distance, seen, dense, scores, n, min(neighbours, n), ROWS=rows, BLOCK=block, num_warps=8)
    return scores


@triton.jit
def _assign(x, targets, group, m, c, d, TOKENS: tl.constexpr, TARGETS: tl.constexpr, WIDTH: tl.constexpr):
    span = tl.program_id(1).to(tl.int64)
    own = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    x += span * m * d
    targets += span * c * d
    best = tl.full([TOKENS], float("-inf"), x.dtype.element_ty)
    found = tl.zeros([TOKENS], tl.int32)
    for first in range(0, c, TARGETS):
        other = first + tl.arange(0, TARGETS)
        products = tl.zeros([TOKENS, TARGETS], x.dtype.element_ty)
        for start in range(0, d, WIDTH):
            lane = start + tl.arange(0, WIDTH)
            near = (lane < d)[None, :]
            a = tl.load(x + own.to(tl.int64)[:, None] * d + lane[None, :], mask=(own < m)[:, None] & near, other=0.0)
            place = other.to(tl.int64)[:, None] * d + lane[None, :]
            b = tl.load(targets + place, mask=(other < c)[:, None] & near, other=0.0)
            products = tl.dot(a, tl.trans(b), products, input_precision="ieee", out_dtype=products.dtype)
        products = tl.where((other < c)[None, :], products, float("-inf"))
        highest = tl.max(products, 1)
        found = tl.where(highest > best, first + tl.argmax(products, 1), found)
        best = tl.maximum(best, highest)
    tl.store(group + span * m + own, found.to(tl.int64), mask=own < m)


@launcher
def assign(x: Tensor, targets: Tensor) -> Tensor:
    """See `tokenprune_kernels.density.assign`; one launch."""
    if x.dtype not in (torch.float32, torch.float64):
        x, targets = x.float(), targets.float()
    spans, m, d = x.shape
    group = torch.empty(spans, m, dtype=torch.long, device=x.device)
    if group.numel():
        grid = (triton.cdiv(m, TOKENS), spans)
        tile = {"TOKENS": TOKENS, "TARGETS": TARGETS, "WIDTH": WIDTH}
        _assign[grid](x.contiguous(), targets.contiguous(), group, m, targets.shape[1], d, **tile)
    return group


@triton.jit
def _mix(weights, x, out, k, n, d, MIXED: tl.constexpr, SOURCES: tl.constexpr, LANES: tl.constexpr):
    row = tl.program_id(0) * MIXED + tl.arange(0, MIXED)
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    total = tl.zeros([MIXED, LANES], tl.float32)
    for first in range(0, n, SOURCES):
        source = first + tl.arange(0, SOURCES)
        place = row.to(tl.int64)[:, None] * n + source[None, :]
        w = tl.load(weights + place, mask=(row < k)[:, None] & (source < n)[None, :], other=0.0)
        if tl.max(tl.max(tl.abs(w), 1), 0) > 0:
            cell = source.to(tl.int64)[:, None] * d + lane[None, :]
            part = tl.load(x + cell, mask=(source < n)[:, None] & (lane < d)[None, :], other=0.0).to(tl.float32)
            total = tl.dot(w, part, total, input_precision="ieee")
    place = row.to(tl.int64)[:, None] * d + lane[None, :]
    tl.store(out + place, total, mask=(row < k)[:, None] & (lane < d)[None, :])


@launcher
def mix(weights: Tensor, x: Tensor) -> Tensor:
    """See `tokenprune_kernels.density.mix`; one launch."""
    (k, n), d = weights.shape, x.shape[1]
    out = torch.empty(k, d, dtype=torch.float32, device=x.device)
    if out.numel():
        grid = (triton.cdiv(k, MIXED), triton.cdiv(d, LANES))
        tile = {"MIXED": MIXED, "SOURCES": SOURCES, "LANES": LANES}
        _mix[grid](weights.float().contiguous(), x.contiguous(), out, k, n, d, **tile)
    return out
