"""The highest scores in order, and rows closed up over what was removed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from tokenprune_kernels.dispatch import fused


@custom_op("tokenprune::top_k", mutates_args=())
def top_k(scores: Tensor, k: int, counts: Tensor | None = None) -> Tensor:
    """Ascending int64 index [S, k] of the highest of `scores` [S, n] (float, int or bool); the lowest index wins ties.

    counts: int64 [S], how many of span s are wanted, at most k; what follows them in its row is 0. NaN counts as the
    highest of all.
    """
    if fused(scores):
        from tokenprune_kernels.fused import selection

        return selection.top_k(scores, k, counts)
    ordered = scores.sort(dim=-1, descending=True, stable=True).indices
    index = ordered[:, :k].sort(dim=-1).values
    if counts is None:
        return index
    there = torch.arange(k, device=scores.device) < counts[:, None]
    n = scores.shape[1]
    index = ordered[:, :k].masked_fill(~there, n).sort(dim=-1).values
    return index.masked_fill(~there, 0)


@top_k.register_fake
def _(scores: Tensor, k: int, counts: Tensor | None = None) -> Tensor:
    return scores.new_empty(scores.shape[0], k, dtype=torch.long)


@custom_op("tokenprune::close_rows", mutates_args=())
def close_rows(keep: Tensor, width: int, tensors: list[Tensor]) -> list[Tensor]:
    """Close up the rows of a batch over what is removed: rows that stay go to the right end, in their order.

    keep: bool [B, L]. width: rows of the result, at least as many as stay in any row of the batch; where fewer stay,
    the last removed ones fill up the left. tensors: [B or 1, L, ...] each, of any dtype. Returns the places int64 [B,
    width] that the rows come from, then every tensor as [B, width, ...]. Differentiable in the tensors.
    """
    if fused(keep):
        from tokenprune_kernels.fused import selection

        return selection.close_rows(keep, width, tensors)
    take = keep.to(torch.uint8).sort(dim=1, stable=True).indices[:, keep.shape[1] - width :]
    return [take.clone(), *(_rows(x, take) for x in tensors)]


def _rows(x: Tensor, take: Tensor) -> Tensor:
    x = x.expand(len(take), *x.shape[1:])
    at = take.reshape(*take.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
    return x.gather(1, at)


@close_rows.register_fake
def _(keep: Tensor, width: int, tensors: list[Tensor]) -> list[Tensor]:
    batch = keep.shape[0]
    found = [keep.new_empty(batch, width, dtype=torch.long)]
    return found + [x.new_empty(batch, width, *x.shape[2:]) for x in tensors]


def _setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: list[Tensor]) -> None:
    ctx.save_for_backward(output[0])
    ctx.shapes = [x.shape for x in inputs[2]]


def _backward(ctx: torch.autograd.function.FunctionCtx, grads: list[Tensor | None]) -> tuple:
    (take,) = ctx.saved_tensors
    found: list[Tensor | None] = []
    for grad, shape in zip(grads[1:], ctx.shapes, strict=True):
        if grad is None:
            found.append(None)
            continue
        whole = grad.new_zeros(len(take), *shape[1:])
        at = take.reshape(*take.shape, *[1] * (grad.ndim - 2)).expand_as(grad)
        whole = whole.scatter(1, at, grad)
        found.append(whole if shape[0] == len(take) else whole.sum(0, keepdim=True))
    return None, None, found


close_rows.register_autograd(_backward, setup_context=_setup)
