"""Triton: cosine distances of half-precision rows through exact products."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune_kernels.dispatch import launcher
from tokenprune_kernels.fused.operands import operand

TILE, WIDTH = 128, 64  # rows and channels of a tile of products


@triton.jit
def _cosine(x, scale, out, n, d, stride, TILE: tl.constexpr, WIDTH: tl.constexpr):
    span = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1) * TILE + tl.arange(0, TILE)
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    x += span * n * stride
    left = x + row.to(tl.int64)[:, None] * stride
    right = x + column.to(tl.int64)[:, None] * stride
    total = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, d, WIDTH):
        lane = start + tl.arange(0, WIDTH)
        a = tl.load(left + lane[None, :], mask=(row < n)[:, None] & (lane < d)[None, :], other=0.0)
        b = tl.load(right + lane[None, :], mask=(column < n)[:, None] & (lane < d)[None, :], other=0.0)
        total = tl.dot(operand(a), tl.trans(operand(b)), total, input_precision="ieee")
    scale += span * n
    mine = tl.load(scale + row, mask=row < n, other=0.0)
    others = tl.load(scale + column, mask=column < n, other=0.0)
    place = span * n * n + row.to(tl.int64)[:, None] * n + column[None, :]
    tl.store(out + place, 1 - total * mine[:, None] * others[None, :], mask=(row < n)[:, None] & (column < n)[None, :])


@launcher
def cosine_distance(x: Tensor) -> Tensor:
    """See `tokenprune_kernels.distance.cosine_distance`, for float16 and bfloat16."""
    spans, n, d = x.shape
    out = torch.empty(spans, n, n, dtype=torch.float32, device=x.device)
    if out.numel():
        x = x.contiguous()
        scale = 1 / torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).clamp(min=1e-12)
        tiles = triton.cdiv(n, TILE)
        _cosine[(tiles, tiles, spans)](x, scale, out, n, d, d, TILE=TILE, WIDTH=WIDTH, num_warps=8, num_stages=3)
    return out
