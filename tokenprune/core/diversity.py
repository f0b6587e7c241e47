"""Greedy subsets: max-min, max-sum, determinantal. Every span of a stack takes its picks side by side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def unit_rows(x: Tensor) -> Tensor:
    """Rows of x [..., d] at length 1, one precision above the input's so that near-duplicates keep their order."""
    x = x.double() if x.dtype == torch.float32 else x.float() if x.dtype != torch.float64 else x
    return functional.normalize(x, dim=-1)


def cosine_distance(x: Tensor) -> Tensor:
    """1 - cosine between the rows of x [S, n, d]; [S, n, n], of the precision of `unit_rows`."""
    unit = unit_rows(x)
    return 1 - unit @ unit.mT


def max_min(distance: Tensor, k: int, start: Tensor | None = None, seeds: Tensor | None = None) -> Tensor:
    """Greedy max-min diversity (k-center) over `distance` [S, n, n]; int64 [S, k] in order of picking.

    First the token with the highest `start` [S, n] (default: farthest from its nearest neighbour), then always the
    token whose nearest chosen token is farthest. seeds: int64 [S, m], tokens that count as chosen already. A chosen
    token is never chosen again; of equal candidates the lowest index wins. O(n k) after the distances.
    """
    if start is None:
        own = torch.eye(distance.shape[-1], dtype=torch.bool, device=distance.device)
        start = distance.masked_fill(own, float("inf")).amin(-1)
    return _greedy(distance, k, start, torch.minimum, seeds)


def max_sum(distance: Tensor, k: int, start: Tensor | None = None) -> Tensor:
    """The same with the sum of the distances to all chosen tokens; the first is farthest from all (default)."""
    return _greedy(distance, k, distance.sum(-1) if start is None else start, torch.add, None)


def _greedy(distance: Tensor, k: int, start: Tensor, join: Callable, seeds: Tensor | None) -> Tensor:
    n = distance.shape[-1]
    score, chosen = start, torch.zeros_like(start, dtype=torch.bool)
    held: Tensor | None = None
    if seeds is not None and seeds.shape[1]:
        chosen = chosen.scatter(1, seeds, True)
        score = held = distance.gather(1, seeds[..., None].expand(-1, -1, n)).amin(1)
    picks = []
    for _ in range(k):
        pick = score.masked_fill(chosen, float("-inf")).argmax(-1)
        picks.append(pick)
        chosen = chosen.scatter(1, pick[:, None], True)
        row = distance.gather(1, pick[:, None, None].expand(-1, 1, n)).squeeze(1)
        score = held = row if held is None else join(held, row)
    return torch.stack(picks, dim=-1) if picks else distance.new_empty(len(distance), 0, dtype=torch.long)


def greedy_dpp(kernel: Tensor, k: int, fallback: Tensor, epsilon: float = 1e-9) -> Tensor:
    """Greedy MAP of a determinantal point process with `kernel` [S, n, n] (Chen et al., NeurIPS 2018, algorithm 1).

    Each pick adds most to the log-determinant. Once nothing is added any more (the kernel's rank is used up: gains
    below `epsilon` of the largest diagonal entry), the rest is filled by the highest `fallback` [S, n].
    int64 [S, k] in order of picking.
    """
    spans, n, _ = kernel.shape
    gain = kernel.diagonal(dim1=-2, dim2=-1).clone()
    least = epsilon * gain.amax(-1, keepdim=True)
    rows = kernel.new_zeros(spans, k, n)
    chosen = torch.zeros(spans, n, dtype=torch.bool, device=kernel.device)
    picks = []
    for step in range(k):
        free = gain.masked_fill(chosen, float("-inf"))
        best, pick = free.max(-1)
        spent = best <= least.squeeze(1)
        pick = torch.where(spent, fallback.masked_fill(chosen, float("-inf")).argmax(-1), pick)
        picks.append(pick)
        chosen = chosen.scatter(1, pick[:, None], True)
        at = pick[:, None, None]
        column = kernel.gather(1, at.expand(-1, 1, n)).squeeze(1)
        past = rows[:, :step].gather(2, at.expand(-1, step, 1))
        rest = column - (past.mT @ rows[:, :step]).squeeze(1)
        row = rest / gain.gather(1, pick[:, None]).clamp(min=torch.finfo(gain.dtype).tiny).sqrt()
        row = row.masked_fill(spent[:, None], 0.0)
        rows[:, step] = row
        gain = gain - row.square()
    return torch.stack(picks, dim=-1) if picks else kernel.new_empty(spans, 0, dtype=torch.long)
