"""Cosine distances between all tokens of a span."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional

from tokenprune_kernels.dispatch import fused

BLOCK = 512  # rows of a block of a symmetric product


def unit_rows(x: Tensor) -> Tensor:
    """Rows of x [..., d] at length 1, one precision above the input's so that near-duplicates keep their order."""
    x = x.double() if x.dtype == torch.float32 else x.float() if x.dtype != torch.float64 else x
    return functional.normalize(x, dim=-1)


@custom_op("tokenprune::cosine_distance", mutates_args=())
def cosine_distance(x: Tensor) -> Tensor:
    """1 - cosine between the rows of x [S, n, d]; [S, n, n], one precision above x (float32 of half precision)."""
    if fused(x) and x.dtype in (torch.float16, torch.bfloat16):
        from tokenprune_kernels.fused import distance

        return distance.cosine_distance(x)
    return products(unit_rows(x)).neg_().add_(1)  # in place: at 6,272 tokens a copy is 315 MB


@cosine_distance.register_fake
def _(x: Tensor) -> Tensor:
    above = torch.float64 if x.dtype in (torch.float32, torch.float64) else torch.float32
    return x.new_empty(x.shape[0], x.shape[1], x.shape[1], dtype=above)


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
