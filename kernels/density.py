"""Density peaks of every frame, and what joins them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from tokenprune_kernels.dispatch import fused

DENSE = 16  # with more than one weight in so many, a plain product is faster than sums of rows


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


@custom_op("tokenprune::assign", mutates_args=())
def assign(x: Tensor, targets: Tensor) -> Tensor:
    """int64 [S, m]: for every row of x [S, m, d] the row of `targets` [S, c, d] with the largest product; the first of
    equals."""
    if fused(x):
        from tokenprune_kernels.fused import density

        return density.assign(x, targets)
    return (x @ targets.mT).argmax(-1)


@assign.register_fake
def _(x: Tensor, targets: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.long)


@custom_op("tokenprune::mix", mutates_args=())
def mix(weights: Tensor, x: Tensor) -> Tensor:
    """Mixtures weights @ x of rows, float32 [k, d]. weights: float32 [k, n], mostly zeros, which cost nothing; x: [n,
    d] of any float type. Differentiable in x."""
    if fused(x):
        from tokenprune_kernels.fused import density

        return density.mix(weights, x)
    if x.is_cuda:  # looking for zeros would make the host wait
        return weights @ x.float()
    rows, sources = weights.nonzero(as_tuple=True)
    if len(rows) > weights.numel() / DENSE:
        return weights @ x.float()
    counts = torch.bincount(rows, minlength=len(weights))
    bags = {"offsets": counts.cumsum(0) - counts, "per_sample_weights": weights[rows, sources]}
    return torch.nn.functional.embedding_bag(sources, x.float(), mode="sum", **bags)


@mix.register_fake
def _(weights: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(weights.shape[0], x.shape[1], dtype=torch.float32)


def _setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.dtype = inputs[1].dtype


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple:
    (weights,) = ctx.saved_tensors
    return None, mix(weights.mT.contiguous(), grad).to(ctx.dtype)


mix.register_autograd(_backward, setup_context=_setup)
