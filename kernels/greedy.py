"""Greedy subsets: the next pick depends on all before it, so the whole loop is one operation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from tokenprune_kernels.dispatch import fused


@custom_op("tokenprune::greedy", mutates_args=())
def greedy(distance: Tensor, k: int, start: Tensor, sums: bool, seeds: Tensor | None = None) -> Tensor:
    """Greedy max-min (k-center), or with `sums` max-sum, diversity over `distance` [S, n, n]; int64 [S, k] in order
    of picking, k at most n.

    The first pick has the highest `start` [S, n]; each later one the highest minimum (sum) of its distances to all
    picks so far. seeds: int64 [S, m], tokens that count as picked already, m > 0; `start` is not read then (max-min
    only). No token is picked twice; of equal candidates the lowest index wins. O(n k): the minimum is kept, not taken
    anew.
    """
    if fused(distance):
        from tokenprune_kernels.fused import greedy

        return greedy.greedy(distance, k, start, sums, seeds)
    spans, n = distance.shape[:2]
    each = torch.arange(spans, device=distance.device)
    chosen = torch.zeros(spans, n, dtype=torch.bool, device=distance.device)
    join = torch.add if sums else torch.minimum
    held: Tensor | None = None
    if seeds is not None:
        chosen.scatter_(1, seeds, True)
        held = distance.gather(1, seeds[..., None].expand(-1, -1, n)).amin(1)
    picks = []
    for _ in range(k):
        score = start if held is None else held
        picks.append(score.masked_fill(chosen, float("-inf")).argmax(-1))
        chosen.scatter_(1, picks[-1][:, None], True)
        row = distance[each, picks[-1]]
        held = row if held is None else join(held, row, out=held)
    return torch.stack(picks, dim=-1) if picks else distance.new_empty(spans, 0, dtype=torch.long)


@greedy.register_fake
def _(distance: Tensor, k: int, start: Tensor, sums: bool, seeds: Tensor | None = None) -> Tensor:
    return distance.new_empty(distance.shape[0], k, dtype=torch.long)


@custom_op("tokenprune::greedy_dpp", mutates_args=())
def greedy_dpp(kernel: Tensor, k: int, fallback: Tensor, epsilon: float = 1e-9) -> Tensor:
    """Greedy MAP of a determinantal point process with `kernel` [S, n, n] (Chen et al., NeurIPS 2018, algorithm 1).

    Each pick adds most to the log-determinant. Once nothing is added any more (the kernel's rank is used up: gains
    below `epsilon` of the largest diagonal entry), the rest is filled by the highest `fallback` [S, n]. int64 [S, k] in
    order of picking, k at most n.
    """
    if fused(kernel):
        from tokenprune_kernels.fused import greedy

        return greedy.greedy_dpp(kernel, k, fallback, epsilon)
    spans, n, _ = kernel.shape
    each = torch.arange(spans, device=kernel.device)
    gain = kernel.diagonal(dim1=-2, dim2=-1).clone()
    least = epsilon * gain.amax(-1)
    rows = kernel.new_zeros(spans, k, n)
    chosen = torch.zeros(spans, n, dtype=torch.bool, device=kernel.device)
    picks = []
    for step in range(k):
        best, pick = gain.masked_fill(chosen, float("-inf")).max(-1)
        spent = best <= least
        pick = torch.where(spent, fallback.masked_fill(chosen, float("-inf")).argmax(-1), pick)
        picks.append(pick)
        chosen.scatter_(1, pick[:, None], True)
        past = rows[each, :step, pick]
        rest = kernel[each, pick] - (past[:, None] @ rows[:, :step]).squeeze(1)
        row = rest / gain[each, pick].clamp(min=torch.finfo(gain.dtype).tiny).sqrt()[:, None]
        rows[:, step] = row.masked_fill_(spent[:, None], 0.0)
        gain -= rows[:, step].square()
    return torch.stack(picks, dim=-1) if picks else kernel.new_empty(spans, 0, dtype=torch.long)


@greedy_dpp.register_fake
def _(kernel: Tensor, k: int, fallback: Tensor, epsilon: float = 1e-9) -> Tensor:
    return kernel.new_empty(kernel.shape[0], k, dtype=torch.long)
