"""Greedy subsets: max-min, max-sum, determinantal. Every span of a stack takes its picks side by side."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune.core.trace import note_order
from tokenprune_kernels import greedy as kernels

__all__ = ["cosine_distance", "greedy_dpp", "max_min", "max_sum", "nearest", "unit_rows"]
BLOCK = 512  # rows of a block of a symmetric product


def unit_rows(x: Tensor) -> Tensor:
    """Rows of x [..., d] at length 1, one precision above the input's so that near-duplicates keep their order."""
    x = x.double() if x.dtype == torch.float32 else x.float() if x.dtype != torch.float64 else x
    return functional.normalize(x, dim=-1)


def cosine_distance(x: Tensor) -> Tensor:
    """1 - cosine between the rows of x [S, n, d]; [S, n, n], of the precision of `unit_rows`."""
    return products(unit_rows(x)).neg_().add_(1)  # in place: at 6,272 tokens a copy is 315 MB


def products(x: Tensor) -> Tensor:
    """x @ x.mT of x [S, n, d]; on a CPU, where that saves time, the lower half is copied from the upper."""
    spans, n, _ = x.shape
    if x.is_cuda or n <= 2 * BLOCK:
        return x @ x.mT
    whole = x.new_empty(spans, n, n)
    for first in range(0, n, BLOCK):
        last = first + BLOCK
        torch.matmul(x[:, first:last], x[:, first:].mT, out=whole[:, first:last, first:])
        whole[:, last:, first:last] = whole[:, first:last, last:].mT
    return whole


def max_min(distance: Tensor, k: int, start: Tensor | None = None, seeds: Tensor | None = None) -> Tensor:
    """Greedy max-min diversity (k-center) over `distance` [S, n, n]; int64 [S, k] in order of picking.

    First the token with the highest `start` [S, n] (default: farthest from its nearest neighbour), then always the
    token whose nearest chosen token is farthest. seeds: int64 [S, m], tokens that count as chosen already. A chosen
    token is never chosen again; of equal candidates the lowest index wins. O(n k) after the distances.
    """
    if start is None:
        start = nearest(distance)
    seeds = None if seeds is None or not seeds.shape[1] else seeds
    return _picked(kernels.greedy(distance, k, start, sums=False, seeds=seeds))


def max_sum(distance: Tensor, k: int, start: Tensor | None = None) -> Tensor:
    """The same with the sum of the distances to all chosen tokens; the first is farthest from all (default)."""
    return _picked(kernels.greedy(distance, k, distance.sum(-1) if start is None else start, sums=True))


def greedy_dpp(kernel: Tensor, k: int, relevance: Tensor) -> Tensor:
    """Greedy determinantal subset of `kernel` [S, n, n]; int64 [S, k] in order of picking."""
    return _picked(kernels.greedy_dpp(kernel, k, relevance))


def _picked(picks: Tensor) -> Tensor:
    note_order(picks)
    return picks


def nearest(distance: Tensor) -> Tensor:
    """The distance of every token to its nearest other one, [S, n] of [S, n, n]; infinite where it is alone."""
    own = distance.diagonal(dim1=-2, dim2=-1)
    before = own.clone()
    own.fill_(float("inf"))  # and back, rather than on a copy of n x n
    found = distance.amin(-1)
    own.copy_(before)
    return found
