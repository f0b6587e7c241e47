"""Triton: one program walks through all picks of a span, its scores in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune_kernels.dispatch import launcher


@triton.jit
def _first_largest(score, alive):
    """The place of the highest score among `alive`; the lowest of equals."""
    return tl.argmax(tl.where(alive, score, float("-inf")), 0)


@triton.jit
def _greedy(distance, start, seeds, picks, n, k, m, SUMS: tl.constexpr, BLOCK: tl.constexpr):
    span = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < n
    alive = inside
    distance += span * n * n
    if seeds is None:
        score = tl.load(start + span * n + at, mask=inside, other=float("-inf"))
    else:
        score = tl.full([BLOCK], float("inf"), distance.dtype.element_ty)
        for i in range(m):
            seed = tl.load(seeds + span * m + i)
            alive = alive & (at != seed)
            score = tl.minimum(score, tl.load(distance + seed * n + at, mask=inside, other=0.0))
    for i in range(k):
        pick = _first_largest(score, alive)
        tl.store(picks + span * k + i, pick.to(tl.int64))
        alive = alive & (at != pick)
        row = tl.load(distance + pick.to(tl.int64) * n + at, mask=inside, other=0.0)
        if (seeds is None) & (i == 0):
            score = row
        elif SUMS:
            score += row
        else:
            score = tl.minimum(score, row)


@launcher
def greedy(distance: Tensor, k: int, start: Tensor, sums: bool, seeds: Tensor | None) -> Tensor:
    """See `tokenprune_kernels.greedy.greedy`; one launch."""
    spans, n = distance.shape[:2]
    picks = torch.empty(spans, k, dtype=torch.long, device=distance.device)
    if picks.numel():
        seeds = None if seeds is None else seeds.contiguous()
        m = 0 if seeds is None else seeds.shape[1]
        start = start.to(distance.dtype).contiguous()
        block = max(triton.next_power_of_2(n), 16)
        distance = distance.contiguous()
        _greedy[(spans,)](
            distance, start, seeds, picks, n, k, m, SUMS=sums, BLOCK=block, num_warps=min(max(block // 256, 4), 16)
        )
    return picks


@triton.jit
def _greedy_dpp(kernel, fallback, rows, picks, n, k, epsilon, BLOCK: tl.constexpr):
    span = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < n
    alive = inside
    kernel += span * n * n
    rows += span * k * n
    gain = tl.load(kernel + at.to(tl.int64) * (n + 1), mask=inside, other=float("-inf"))
    spare = tl.load(fallback + span * n + at, mask=inside, other=float("-inf"))
    least = epsilon * tl.max(gain, 0)
    for i in range(k):
        best = tl.max(tl.where(alive, gain, float("-inf")), 0)
        spent = best <= least
        pick = _first_largest(tl.where(spent, spare, gain), alive)
        tl.store(picks + span * k + i, pick.to(tl.int64))
        alive = alive & (at != pick)
        rest = tl.load(kernel + pick.to(tl.int64) * n + at, mask=inside, other=0.0)
        for j in range(i):
            past = tl.load(rows + j * n + pick)
            rest -= past * tl.load(rows + j * n + at, mask=inside, other=0.0)
        own = tl.sum(tl.where(at == pick, gain, 0.0), 0)
        row = rest / tl.sqrt(tl.maximum(own, 1e-30))
        row = tl.where(spent, 0.0, row)
        tl.store(rows + i * n + at, row, mask=inside)
        tl.debug_barrier()  # every thread reads the entry of the next pick
        gain -= row * row


@launcher
def greedy_dpp(kernel: Tensor, k: int, fallback: Tensor, epsilon: float) -> Tensor:
    """See `tokenprune_kernels.greedy.greedy_dpp`; one launch."""
    spans, n, _ = kernel.shape
    picks = torch.empty(spans, k, dtype=torch.long, device=kernel.device)
    if picks.numel():
        rows = torch.empty(spans, k, n, dtype=kernel.dtype, device=kernel.device)
        block = max(triton.next_power_of_2(n), 16)
        _greedy_dpp[(spans,)](
            kernel.contiguous(),
            fallback.to(kernel.dtype).contiguous(),
            rows,
            picks,
            n,
            k,
            epsilon,
            BLOCK=block,
            num_warps=min(max(block // 256, 4), 16),
        )
    return picks
