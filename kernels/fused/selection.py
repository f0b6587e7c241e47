"""Triton: top-k by radix search, and rows closed up over what was removed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune_kernels.dispatch import launcher

BITS = {torch.bool: 1, torch.uint8: 8, torch.int64: 64, torch.float64: 64}  # others: 32, as float32 or int32
CHUNK = 512  # words of a row that one program of `_gather_rows` moves


@triton.jit
def _keys(scores, at, inside, BITS: tl.constexpr):
    """Scores as signed integers of the same order; NaN highest, -0 equal to 0."""
    x = tl.load(scores + at, mask=inside, other=0)
    if x.dtype.is_floating():
        if BITS == 64:
            bits = tl.where(x == 0, 0.0, x).to(tl.int64, bitcast=True)
            key = tl.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits)
            key = tl.where(x != x, 0x7FFFFFFFFFFFFFFF, key)
        else:
            x = x.to(tl.float32)
            bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
            key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
            key = tl.where(x != x, 0x7FFFFFFF, key)
    elif BITS == 64:
        key = x.to(tl.int64)
    else:
        key = x.to(tl.int32)
    return key


@triton.jit
def _top_k(scores, counts, index, n, k, stride, BLOCK: tl.constexpr, BITS: tl.constexpr):
    span = tl.program_id(0).to(tl.int64)
    scores += span * stride
    index += span * k
    wanted = k
    if counts is not None:
        wanted = tl.load(counts + span).to(tl.int32)
    one = tl.full((), 1, tl.int64 if BITS == 64 else tl.int32)
    # The largest threshold that at least `wanted` scores reach, found from its highest bit down.
    threshold = one * 0
    if BITS >= 32:
        threshold = one << (BITS - 1)
    for i in range(BITS):
        candidate = threshold ^ (one << (BITS - 1 - i))
        reach = 0
        for first in range(0, n, BLOCK):
            at = first + tl.arange(0, BLOCK)
            inside = at < n
            reach += tl.sum(((_keys(scores, at, inside, BITS) >= candidate) & inside).to(tl.int32))
        threshold = tl.where(reach >= wanted, candidate, threshold)
    above = 0
    for first in range(0, n, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < n
        above += tl.sum(((_keys(scores, at, inside, BITS) > threshold) & inside).to(tl.int32))
    ties = wanted - above
    equals, taken = 0, 0
    for first in range(0, n, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < n
        key = _keys(scores, at, inside, BITS)
        equal = ((key == threshold) & inside).to(tl.int32)
        take = (((key > threshold) & inside) | ((equal > 0) & (equals + tl.cumsum(equal) <= ties))).to(tl.int32)
        place = taken + tl.cumsum(take) - 1
        tl.store(index + place, at.to(tl.int64), mask=(take > 0) & (place < wanted))
        equals += tl.sum(equal)
        taken += tl.sum(take)
    if counts is not None:
        for first in range(0, k, BLOCK):
            at = first + tl.arange(0, BLOCK)
            tl.store(index + at, tl.zeros([BLOCK], tl.int64), mask=(at >= wanted) & (at < k))


@launcher
def top_k(scores: Tensor, k: int, counts: Tensor | None = None) -> Tensor:
    """See `tokenprune_kernels.selection.top_k`; one launch, one program a span."""
    scores = scores.contiguous()
    spans, n = scores.shape
    bits = BITS.get(scores.dtype, 32)
    index = scores.new_empty(spans, k, dtype=torch.long)
    raw = scores.view(torch.uint8) if scores.dtype == torch.bool else scores
    if spans and k:
        block = min(max(triton.next_power_of_2(n), 16), 4096)
        _top_k[(spans,)](raw, counts, index, n, k, n, BLOCK=block, BITS=bits, num_warps=8)
    return index


@triton.jit
def _places(keep, take, length, width, SCAN: tl.constexpr):
    """Where the rows of one row of the batch come from: what stays at the right, the last removed ones before it."""
    row = tl.program_id(0).to(tl.int64)
    keep += row * length
    take += row * width
    total = 0
    for start in range(0, length, SCAN):
        at = start + tl.arange(0, SCAN)
        total += tl.sum((tl.load(keep + at, mask=at < length, other=0) != 0).to(tl.int32))
    before = 0
    for start in range(0, length, SCAN):
        at = start + tl.arange(0, SCAN)
        alive = (tl.load(keep + at, mask=at < length, other=0) != 0).to(tl.int32)
        kept = before + tl.cumsum(alive) - alive
        place = tl.where(alive > 0, width - total + kept, at - kept - (length - width))
        tl.store(take + place, at.to(tl.int64), mask=(at < length) & (place >= 0))
        before += tl.sum(alive)


@triton.jit
def _gather_rows(take, sources, targets, batch_strides, row_strides, words, width, CHUNK: tl.constexpr):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch, place = row // width, tl.load(take + row)
    column = part * CHUNK + tl.arange(0, CHUNK)
    for i in tl.static_range(len(sources)):
        if part * CHUNK < words[i]:
            here = column < words[i]
            source = sources[i] + batch * batch_strides[i] + place * row_strides[i] + column
            tl.store(targets[i] + row * words[i] + column, tl.load(source, mask=here), mask=here)


@launcher
def close_rows(keep: Tensor, width: int, tensors: list[Tensor]) -> list[Tensor]:
    """See `tokenprune_kernels.selection.close_rows`; two launches for all tensors, which are moved as whole words."""
    keep = keep.contiguous()
    batch, length = keep.shape
    take = keep.new_empty(batch, width, dtype=torch.long)
    found = [x.new_empty(batch, width, *x.shape[2:]) for x in tensors]
    if not (batch and length and width):
        return [take, *found]
    _places[(batch,)](keep.view(torch.uint8), take, length, width, SCAN=min(triton.next_power_of_2(length), 2048))
    pairs = [as_words(x, y) for x, y in zip(tensors, found, strict=True)]
    sources = tuple(source for source, _ in pairs)
    chunks = max([triton.cdiv(source.shape[2], CHUNK) for source in sources], default=0)
    if chunks:
        _gather_rows[(batch * width, chunks)](
            take,
            sources,
            tuple(target for _, target in pairs),
            tuple(x.stride(0) if x.shape[0] == batch and batch > 1 else 0 for x in sources),
            tuple(x.stride(1) for x in sources),
            tuple(x.shape[2] for x in sources),
            width,
            CHUNK=CHUNK,
        )
    return [take, *found]


def as_words(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [B, L, ...] of both as [B, L, words] of the widest integer that divides a row and its strides."""
    source = source.flatten(2) if source.ndim > 2 else source[..., None]
    target = target.flatten(2) if target.ndim > 2 else target[..., None]
    if source.shape[2] > 1 and source.stride(2) != 1:
        source = source.contiguous()
    size = source.element_size()
    spaces = [source.shape[2], source.stride(0), source.stride(1), source.storage_offset(), target.storage_offset()]
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8):
        more = dtype.itemsize // size
        if more == 1 or (more > 1 and source.stride(2) == 1 and all(space % more == 0 for space in spaces)):
            return source.view(dtype), target.view(dtype)
    raise AssertionError(f"{source.dtype} has no integer of its size")
