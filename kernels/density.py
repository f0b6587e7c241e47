"""Density peaks of every frame."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from tokenprune_kernels.dispatch import fused


@custom_op("tokenprune::peak_scores", mutates_args=())
def peak_scores(distance: Tensor, neighbours: int, there: Tensor | None = None) -> Tensor:
    """How much of a density peak every token is, float [S, n], from distances [S, n, n]: its density times the
    distance to the nearest denser token (the largest distance where there is none). Of duplicates the first is denser.

    The density is exp(-mean of the squares of the `neighbours` smallest distances, the token's own 0 included). there:
    bool [S, n], False for tokens that are not to be looked at; they score -inf.
    """
    if fused(distance):
        from tokenprune_kernels.fused import density

        return density.peak_scores(distance, neighbours, there)
    n = distance.shape[-1]
    there = distance.new_ones(distance.shape[:2], dtype=torch.bool) if there is None else there
    far = distance.masked_fill(~there[:, None], float("inf"))
    nearest = far.topk(min(neighbours, n), dim=-1, largest=False).values
    real = nearest.isfinite()
    dense = (-(nearest.masked_fill(~real, 0).square().sum(-1) / real.sum(-1).clamp(min=1))).exp()
    higher = dense[:, None, :] > dense[..., None]
    earlier = torch.ones(n, n, dtype=torch.bool, device=distance.device).tril(-1)
    higher |= (dense[:, None, :] == dense[..., None]) & earlier & (distance == 0)
    gap = far.masked_fill(~higher, float("inf")).amin(-1)
    farthest = far.masked_fill(far.isinf() | ~there[..., None], 0).amax((-2, -1))[:, None]
    gap = torch.where(gap.isinf(), farthest, gap)
    return (dense * gap).masked_fill(~there, float("-inf"))


@peak_scores.register_fake
def _(distance: Tensor, neighbours: int, there: Tensor | None = None) -> Tensor:
    return distance.new_empty(distance.shape[:2])
