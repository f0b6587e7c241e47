"""Single rows of attention, softmax over the whole row, without an L x L matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from tokenprune_kernels.dispatch import fused


@custom_op("tokenprune::row_attention", mutates_args=())
def row_attention(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    visible: Tensor,
    scaling: float,
    softcap: float = 0.0,
    mean: bool = False,
) -> Tensor:
    """What m queries of each row of the batch pay to every key; float32 [B, H, m, keys], or [B, m, keys] with `mean`
    over the heads.

    query: [B, H, L, e]; key: [B, H', keys, e], H a multiple of H'; rows: int64 [B, m], places in L; visible: bool [B,
    m, keys]. softcap: scores become softcap * tanh(score / softcap). A query that sees nothing pays NaN.
    """
    if fused(query):
        from tokenprune_kernels.fused import attention

        return attention.row_attention(query, key, rows, visible, scaling, softcap, mean)
    scores = row_products(query, key, rows, scaling, softcap)
    paid = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    return paid.mean(1) if mean else paid


def row_products(query: Tensor, key: Tensor, rows: Tensor, scaling: float, softcap: float = 0.0) -> Tensor:
    """The products of these queries with all keys, scaled and capped, before any softmax; float32 [B, H, m, keys]."""
    batch, heads, _, width = query.shape
    picked = query.gather(2, rows[:, None, :, None].expand(-1, heads, -1, width)).float()
    grouped = picked.view(batch, key.shape[1], -1, width)
    scores = (grouped @ key.float().mT).view(batch, heads, rows.shape[1], -1) * scaling
    return softcap * (scores / softcap).tanh() if softcap else scores


@row_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    visible: Tensor,
    scaling: float,
    softcap: float = 0.0,
    mean: bool = False,
) -> Tensor:
    heads = () if mean else (query.shape[1],)
    return query.new_empty(query.shape[0], *heads, rows.shape[1], key.shape[2], dtype=torch.float32)
