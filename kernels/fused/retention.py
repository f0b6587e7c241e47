"""Triton: keys and values of a cache gathered in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tokenprune_kernels.dispatch import launcher

ROWS = 16  # of a tile


@triton.jit
def _gather(sources, targets, index, strides, widths, heads, k, room, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    own = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, WIDTH)
    row = tl.load(index + batch * k + own, mask=own < k, other=0)
    start = (batch * heads + head) * (k + room) + own[:, None]
    for i in tl.static_range(2):
        here = (own < k)[:, None] & (lane < widths[i])[None, :]
        base = batch * strides[i][0] + head * strides[i][1]
        source = base + row[:, None] * strides[i][2] + lane[None, :] * strides[i][3]
        target = targets[i] + start * widths[i] + lane[None, :]
        tl.store(target, tl.load(sources[i] + source, mask=here), mask=here)


@launcher
def gather_cache(keys: Tensor, values: Tensor, index: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """See `tokenprune_kernels.retention.gather_cache`."""
    (batch, heads), k = keys.shape[:2], index.shape[1]
    widths = keys.shape[3], values.shape[3]
    found = tuple(x.new_empty(batch, heads, k + room, x.shape[3]) for x in (keys, values))
    if batch and k:
        _gather[(batch * heads, triton.cdiv(k, ROWS))](
            (keys, values),
            found,
            index.contiguous(),
            (tuple(keys.stride()), tuple(values.stride())),
            widths,
            heads,
            k,
            room,
            ROWS=ROWS,
            WIDTH=max(triton.next_power_of_2(max(widths)), 16),
        )
    return found
