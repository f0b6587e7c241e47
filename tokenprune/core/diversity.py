"""Greedy subsets: max-min, max-sum, determinantal. Every span of a stack takes its picks side by side."""

from __future__ import annotations

from torch import Tensor

from tokenprune.core.trace import note_order
from tokenprune_kernels import greedy as kernels
from tokenprune_kernels.distance import cosine_distance, products, unit_rows

__all__ = ["cosine_distance", "greedy_dpp", "max_min", "max_sum", "nearest", "products", "unit_rows"]


def max_min(distance: Tensor, k: int, start: Tensor | None = None, seeds: Tensor | None = None) -> Tensor:
    """Greedy max-min diversity (k-center) over `distance` [S, n, n]; int64 [S, k] in order of picking.

    First the token with the highest `start` [S, n] (default: farthest from its nearest neighbour), then always the
    token whose nearest chosen token is farthest. seeds: int64 [S, m], tokens that count as chosen already. A chosen
    token is never chosen again; of equal candidates the lowest index wins. O(n k) after the distances.
    """
    if start is None:
        start = nearest(distance)
    seeds = None if seeds is None or not seeds.shape[1] else seeds
    return _mark_picks(kernels.greedy(distance, k, start, sums=False, seeds=seeds))


def max_sum(distance: Tensor, k: int, start: Tensor | None = None) -> Tensor:
    """The same with the sum of the distances to all chosen tokens; the first is farthest from all (default)."""
    return _mark_picks(kernels.greedy(distance, k, distance.sum(-1) if start is None else start, sums=True))


def greedy_dpp(kernel: Tensor, k: int, relevance: Tensor) -> Tensor:
    """Greedy determinantal subset of `kernel` [S, n, n]; int64 [S, k] in order of picking."""
    return _mark_picks(kernels.greedy_dpp(kernel, k, relevance))


def _mark_picks(picks: Tensor) -> Tensor:
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
