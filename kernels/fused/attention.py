"""Triton: log-sum-exp of the chosen rows, then their probabilities, a tile of keys at a time."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune_kernels.dispatch import launcher

QUERIES, KEYS = 16, 64  # rows and columns of a tile


@triton.jit
def _query(query, rows, head, m, strides, at, e, WIDTH: tl.constexpr):
    """The chosen queries of a head, float32 [QUERIES, WIDTH]; zeros outside."""
    lane = tl.arange(0, WIDTH)
    row = tl.load(rows + at, mask=at < m, other=0)
    place = head * strides[1] + row[:, None] * strides[2] + lane[None, :] * strides[3]
    return tl.load(query + place, mask=(at < m)[:, None] & (lane < e)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _scores(q, key, head, at, visible, keys, strides, e, scaling, softcap, WIDTH: tl.constexpr):
    """Scores [QUERIES, KEYS] of queries over the keys `at`, -inf where `visible` is False."""
    lane = tl.arange(0, WIDTH)
    place = head * strides[1] + at[:, None] * strides[2] + lane[None, :] * strides[3]
    k = tl.load(key + place, mask=(at < keys)[:, None] & (lane < e)[None, :], other=0.0).to(tl.float32)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
    if softcap is not None:
        bent = tl.exp(-2 * tl.abs(scores / softcap))  # tanh without overflow
        scores = softcap * tl.where(scores < 0, -1.0, 1.0) * (1 - bent) / (1 + bent)
    return tl.where(visible, scores, float("-inf"))


@triton.jit
def _log_sums(
    query,
    key,
    rows,
    visible,
    sums,
    query_strides,
    key_strides,
    heads,
    group,
    m,
    keys,
    e,
    scaling,
    softcap,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    own = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    q = _query(query + batch * query_strides[0], rows + batch * m, head, m, query_strides, own, e, WIDTH)
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    for first in range(0, keys, KEYS):
        at = first + tl.arange(0, KEYS)
        inside = (own < m)[:, None] & (at < keys)[None, :]
        seen = tl.load(visible + (batch * m + own[:, None]) * keys + at[None, :], mask=inside, other=0) != 0
        place = at.to(tl.int64)
        base = key + batch * key_strides[0]
        s = _scores(q, base, head // group, place, seen, keys, key_strides, e, scaling, softcap, WIDTH)
        higher = tl.maximum(largest, tl.max(s, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(largest - safe) + tl.sum(tl.exp(s - safe[:, None]), 1)
        largest = higher
    result = tl.where(total > 0, largest + tl.log(total), float("-inf"))
    tl.store(sums + tl.program_id(0).to(tl.int64) * m + own, result, mask=own < m)


@triton.jit
def _paid(
    query,
    key,
    rows,
    visible,
    sums,
    out,
    query_strides,
    key_strides,
    heads,
    group,
    m,
    keys,
    e,
    scaling,
    softcap,
    MEAN: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64)
    own = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    at = tl.program_id(2) * KEYS + tl.arange(0, KEYS)
    inside = (own < m)[:, None] & (at < keys)[None, :]
    place = at.to(tl.int64)
    seen = tl.load(visible + (batch * m + own[:, None]) * keys + at[None, :], mask=inside, other=0) != 0
    mean = tl.zeros([QUERIES, KEYS], tl.float32)
    for head in range(heads):
        q = _query(query + batch * query_strides[0], rows + batch * m, head, m, query_strides, own, e, WIDTH)
        base = key + batch * key_strides[0]
        s = _scores(q, base, head // group, place, seen, keys, key_strides, e, scaling, softcap, WIDTH)
        top = tl.load(sums + (batch * heads + head) * m + own, mask=own < m, other=0.0)
        p = tl.exp(s - top[:, None])
        if MEAN:
            mean += p
        else:
            tl.store(out + ((batch * heads + head) * m + own[:, None]) * keys + place[None, :], p, mask=inside)
    if MEAN:
        tl.store(out + (batch * m + own[:, None]) * keys + place[None, :], mean / heads, mask=inside)


@launcher
def row_attention(
    query: Tensor, key: Tensor, rows: Tensor, visible: Tensor, scaling: float, softcap: float, mean: bool
) -> Tensor:
    """See `tokenprune_kernels.attention.row_attention`; two launches."""
    batch, heads, _, e = query.shape
    group, m, keys = heads // key.shape[1], rows.shape[1], key.shape[2]
    sums = query.new_empty(batch, heads, m, dtype=torch.float32)
    shape = (batch, m, keys) if mean else (batch, heads, m, keys)
    out = query.new_empty(shape, dtype=torch.float32)
    if out.numel() == 0:
        return out
    seen = visible.contiguous().view(torch.uint8)
    sizes = (heads, group, m, keys, e, scaling, softcap or None)
    strides = (tuple(query.stride()), tuple(key.stride()))
    tile = {"QUERIES": QUERIES, "KEYS": KEYS, "WIDTH": max(triton.next_power_of_2(e), 16)}
    grid = (batch, triton.cdiv(m, QUERIES), triton.cdiv(keys, KEYS))
    rows = rows.contiguous()
    _log_sums[(batch * heads, grid[1])](query, key, rows, seen, sums, *strides, *sizes, **tile)
    _paid[grid](query, key, rows, seen, sums, out, *strides, *sizes, MEAN=mean, **tile)
    return out
