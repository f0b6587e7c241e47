"""Triton: log-sum-exp of the chosen rows, split over the keys, then their probabilities, a tile of keys at a time.

A tile holds some queries with all the heads that share a key head, so that a key is read once for its group.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune_kernels.dispatch import launcher
from tokenprune_kernels.fused.operands import operand

ROWS, KEYS = 16, 64  # the fewest rows, and the columns, of a tile
SPLIT = 512  # keys that one program sums


@triton.jit
def _queries(query, rows, own, at, heads, m, strides, e, WIDTH: tl.constexpr):
    """The chosen queries `at` in these heads, [ROWS, WIDTH] as they are stored; zeros outside."""
    lane = tl.arange(0, WIDTH)
    row = tl.load(rows + at, mask=at < m, other=0)
    place = heads.to(tl.int64)[:, None] * strides[1] + row[:, None] * strides[2] + lane[None, :] * strides[3]
    return tl.load(query + place, mask=own[:, None] & (lane < e)[None, :], other=0.0)


@triton.jit
def _scores(q, key, head, at, visible, keys, strides, e, scaling, softcap, WIDTH: tl.constexpr):
    """Scores [ROWS, KEYS] of queries over the keys `at`, -inf where `visible` is False."""
    lane = tl.arange(0, WIDTH)
    place = head * strides[1] + at.to(tl.int64)[:, None] * strides[2] + lane[None, :] * strides[3]
    k = tl.load(key + place, mask=(at < keys)[:, None] & (lane < e)[None, :], other=0.0)
    scores = tl.dot(operand(q), tl.trans(operand(k)), input_precision="ieee") * scaling
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
    largest_of,
    total_of,
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
    GROUP: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    key_heads = heads // group
    batch, head = (tl.program_id(0) // key_heads).to(tl.int64), tl.program_id(0) % key_heads
    line = tl.arange(0, QUERIES * GROUP)
    at, member = tl.program_id(1) * QUERIES + line // GROUP, line % GROUP
    own = (at < m) & (member < group)
    mine = head * group + member
    q = _queries(query + batch * query_strides[0], rows + batch * m, own, at, mine, m, query_strides, e, WIDTH)
    key += batch * key_strides[0]
    largest = tl.full([QUERIES * GROUP], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES * GROUP], tl.float32)
    start = tl.program_id(2) * SPLIT
    for first in range(start, tl.minimum(start + SPLIT, keys), KEYS):
        column = first + tl.arange(0, KEYS)
        inside = own[:, None] & (column < keys)[None, :]
        seen = tl.load(visible + (batch * m + at[:, None]) * keys + column[None, :], mask=inside, other=0) != 0
        s = _scores(q, key, head, column, seen, keys, key_strides, e, scaling, softcap, WIDTH)
        higher = tl.maximum(largest, tl.max(s, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(largest - safe) + tl.sum(tl.exp(s - safe[:, None]), 1)
        largest = higher
    place = ((batch * heads + mine) * m + at) * tl.num_programs(2) + tl.program_id(2)
    tl.store(largest_of + place, largest, mask=own)
    tl.store(total_of + place, total, mask=own)


@triton.jit
def _paid(
    query,
    key,
    rows,
    visible,
    largest_of,
    total_of,
    out,
    query_strides,
    key_strides,
    heads,
    group,
    m,
    keys,
    e,
    splits,
    scaling,
    softcap,
    MEAN: tl.constexpr,
    QUERIES: tl.constexpr,
    GROUP: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64)
    line = tl.arange(0, QUERIES * GROUP)
    at, member = tl.program_id(1) * QUERIES + line // GROUP, line % GROUP
    own = (at < m) & (member < group)
    column = tl.program_id(2) * KEYS + tl.arange(0, KEYS)
    inside = own[:, None] & (column < keys)[None, :]
    seen = tl.load(visible + (batch * m + at[:, None]) * keys + column[None, :], mask=inside, other=0) != 0
    part = tl.arange(0, SPLITS)
    mean = tl.zeros([QUERIES, KEYS], tl.float32)
    for head in range(heads // group):
        mine = head * group + member
        line_at = (batch * heads + mine) * m + at
        there = own[:, None] & (part < splits)[None, :]
        largest = tl.load(largest_of + line_at[:, None] * splits + part[None, :], mask=there, other=float("-inf"))
        total = tl.load(total_of + line_at[:, None] * splits + part[None, :], mask=there, other=0.0)
        highest = tl.max(largest, 1)
        safe = tl.where(highest == float("-inf"), 0.0, highest)
        log_sum = highest + tl.log(tl.sum(total * tl.exp(largest - safe[:, None]), 1))
        q = _queries(query + batch * query_strides[0], rows + batch * m, own, at, mine, m, query_strides, e, WIDTH)
        base = key + batch * key_strides[0]
        s = _scores(q, base, head, column, seen, keys, key_strides, e, scaling, softcap, WIDTH)
        p = tl.exp(s - log_sum[:, None])  # NaN where a query sees nothing
        if MEAN:
            p = tl.where(own[:, None], p, 0.0)
            mean += tl.sum(tl.reshape(p, [QUERIES, GROUP, KEYS]), 1)
        else:
            tl.store(out + line_at[:, None] * keys + column[None, :], p, mask=inside)
    if MEAN:
        row = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
        place = (batch * m + row[:, None]) * keys + column[None, :]
        tl.store(out + place, mean / heads, mask=(row < m)[:, None] & (column < keys)[None, :])


@launcher
def row_attention(
    query: Tensor, key: Tensor, rows: Tensor, visible: Tensor, scaling: float, softcap: float, mean: bool
) -> Tensor:
    """See `tokenprune_kernels.attention.row_attention`; two launches."""
    if query.dtype != key.dtype or query.dtype == torch.float64:
        query, key = query.float(), key.float()
    batch, heads, _, e = query.shape
    group, m, keys = heads // key.shape[1], rows.shape[1], key.shape[2]
    shape = (batch, m, keys) if mean else (batch, heads, m, keys)
    out = query.new_empty(shape, dtype=torch.float32)
    if out.numel() == 0:
        return out
    splits = triton.cdiv(keys, SPLIT)
    largest, total = query.new_empty(2, batch, heads, m, splits, dtype=torch.float32).unbind(0)
    rows, seen = rows.contiguous(), visible.contiguous().view(torch.uint8)
    strides = (tuple(query.stride()), tuple(key.stride()))
    together = triton.next_power_of_2(group)
    tile = {"QUERIES": max(1, ROWS // together), "GROUP": together, "KEYS": KEYS}
    tile["WIDTH"] = max(triton.next_power_of_2(e), 16)
    tiles = triton.cdiv(m, tile["QUERIES"])
    shared = (query, key, rows, seen, largest, total)
    sizes = (heads, group, m, keys, e)
    _log_sums[(batch * heads // group, tiles, splits)](
        *shared, *strides, *sizes, scaling, softcap or None, SPLIT=SPLIT, **tile
    )
    _paid[(batch, tiles, triton.cdiv(keys, KEYS))](
        *shared,
        out,
        *strides,
        *sizes,
        splits,
        scaling,
        softcap or None,
        MEAN=mean,
        SPLITS=triton.next_power_of_2(splits),
        **tile,
    )
    return out
