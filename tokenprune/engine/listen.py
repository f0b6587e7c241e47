"""Puts taps on the attention of decoder layers, and runs attention that has not run yet up to its keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from tokenprune.engine.forward import Forward
from tokenprune.errors import Unsupported
from tokenprune.signals import taps
from tokenprune.signals.decoder import Tap
from tokenprune.signals.reading import Attention, Listener
from tokenprune_kernels.attention import row_attention, row_products


class _Enough(Exception):
    """Stops an attention module once its queries and keys are known."""


def project(module: nn.Module, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, float, float]:
    """Queries and keys that an attention module makes of hidden states [B, K, d], its scaling and softcap.

    The module itself computes them, with whatever norms and rotation it has, and is stopped before it attends.
    """
    found: list[Any] = []

    def catch(query: Tensor, key: Tensor, scaling: float, mask: Any, softcap: float) -> None:
        found[:] = query, key, scaling, softcap
        raise _Enough

    before = taps.listeners().get(module)
    taps.listeners()[module] = catch
    try:
        module(hidden_states=hidden, position_embeddings=rope, attention_mask=None)
    except _Enough:
        pass
    finally:
        taps.listeners().pop(module)
        if before is not None:
            taps.listeners()[module] = before
    query, key, scaling, softcap = found
    return query, key, scaling, softcap


def before_attention(layer: Any, hidden: Tensor) -> Tensor:
    """What a decoder layer gives its attention of hidden states [B, K, d]: some have their norms behind it alone."""
    return layer.input_layernorm(hidden) if hasattr(layer, "input_layernorm") else hidden


def listener(forward: Forward, i: int, wanted: list[Tap], layer: Callable[[], Any]) -> Listener:
    """Runs taps in the attention of layer i. layer: gives its cache layer, once there is one."""

    def listen(query: Tensor, key: Tensor, scaling: float, mask: Any, softcap: float) -> None:
        _attend(wanted, forward, i, layer(), query, key, scaling, softcap)

    return listen


def tap_ahead(forward: Forward, i: int, wanted: list[Tap], layer: Any, hidden: Tensor, rope: tuple) -> None:
    """Taps in layer i ahead of a stage before it."""
    if forward.piece.past:
        raise Unsupported(
            "A method that looks ahead into the next layer needs the whole prompt in one pass. Start a new cache."
        )
    with torch.no_grad():
        _attend(wanted, forward, i, None, *project(layer.self_attn, before_attention(layer, hidden), rope))


def tap_unrotated(forward: Forward, wanted: list[Tap], layer: Any, hidden: Tensor, rope: tuple) -> None:
    """Taps in a layer that is about to run, as if it had no rotation and its cache were empty."""
    plain = torch.ones_like(rope[0]), torch.zeros_like(rope[1])

    def paid(rows: Tensor) -> Tensor:
        raise Unsupported("Attention without rotation is read before its softmax.")

    with torch.no_grad():
        query, key, scaling, softcap = project(layer.self_attn, before_attention(layer, hidden), plain)
        products = partial(_products, query, key, scaling, softcap)
        for tap in wanted:
            tap(Attention(forward.state, key, paid, products, forward.captured))


def _attend(
    wanted: list[Tap],
    forward: Forward,
    i: int,
    layer: CacheLayerMixin | None,
    query: Tensor,
    key: Tensor,
    scaling: float,
    softcap: float,
) -> None:
    inputs, width = forward.inputs, forward.state.width
    first = inputs.seen_keys(i, layer, key.shape[2])[2]

    def paid(rows: Tensor) -> Tensor:
        visible = inputs.visible(i, layer, key.shape[2], rows)
        found = row_attention(query, key, rows.to(key.device), visible.to(key.device), scaling, softcap)
        return found[..., first : first + width]

    products = partial(_products, query, key, scaling, softcap)
    attention = Attention(forward.state, key[:, :, first : first + width], paid, products, forward.captured)
    for tap in wanted:
        tap(attention)


def _products(query: Tensor, key: Tensor, scaling: float, softcap: float, rows: Tensor) -> Tensor:
    return row_products(query, key, rows.to(query.device), scaling, softcap)
