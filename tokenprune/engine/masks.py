"""Attention masks of shortened rows, in the format of the model's own kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask, or_masks

from tokenprune.errors import Unsupported

PLAIN = ("sdpa", "eager")  # kernels whose masks are tensors of what each query sees


STATES = ("linear_attention", "conv")  # layer types that keep a state in place of keys


class Kind(NamedTuple):
    """What sets a decoder layer apart: its layer type (which may have rotary embeddings of its own), its window, and
    whether it keeps keys."""

    type: str | None
    window: int | None
    keys: bool = True


def layers_of(text_model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers."""
    layers: Any = text_model.layers
    return layers


def layer_kinds(text_model: PreTrainedModel) -> list[Kind]:
    """Kind of each decoder layer; raises `Unsupported` for attention that cannot be shortened."""
    config, layers = text_model.config, layers_of(text_model)
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        own = None if stray_window(text_model) else window
        return [Kind(None, own)] * len(layers)
    states = {t for t, layer in zip(types, layers, strict=False) if t in STATES and not hasattr(layer, "self_attn")}
    odd = sorted(set(types) - {"full_attention", "sliding_attention"} - states)
    if odd:
        why = "they keep no key per token" if set(odd) <= {*STATES, "hybrid"} else "they choose keys by their places"
        raise Unsupported(f"This model has {', '.join(odd)} layers, which cannot be pruned: {why}.")
    if states and states == set(types):
        raise Unsupported(f"This model has {', '.join(sorted(states))} layers alone, so it has no cache to shorten.")
    if states and "sliding_attention" in types:
        raise Unsupported(
            f"This model has {', '.join(sorted(states))} layers beside sliding windows, which cannot be pruned: how "
            "far a window reaches once tokens have gone is told by no full-length model."
        )
    return [Kind(t, window if t == "sliding_attention" else None, t not in states) for t in types[: len(layers)]]


def stray_window(text_model: PreTrainedModel) -> int | None:
    """A sliding window that the config has and the cache keeps to, but that the attention of this model ignores."""
    config = text_model.config
    if getattr(config, "layer_types", None) is not None:
        return None
    slides = hasattr(sys.modules[type(text_model).__module__], "create_sliding_window_causal_mask")
    return None if slides else getattr(config, "sliding_window", None)


class _Clock:
    """Stands in for the cache where masks are made: counts physical rows only, so that mask and keys line up."""

    is_compileable = False

    def __init__(self, past: int, width: int) -> None:
        self.past, self.width = past, width

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.past

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.past

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.width, 0


def as_mask(text_model: PreTrainedModel, seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What each query sees, bool [B, 1, K, keys], in the format of a kernel of `PLAIN`."""
    if text_model.config._attn_implementation == "sdpa":
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def attention_mask(
    text_model: PreTrainedModel,
    hidden: Tensor,
    valid: Tensor | None,
    slots: Tensor,
    width: int,
    window: int | None = None,
    blocks: Tensor | None = None,
    blocks_ignore_window: bool = False,
) -> Any:
    """Mask of the rows `hidden` [B, K, d] over all keys of a layer.

    valid: bool [B, P + K], slots: int64 [B, P + K]: the keys, cached ones first; width: keys that the kernel will see
    (more than P + K in a static cache). valid=None: nothing is padding, nor any key more than P + K. window: a query
    sees slots above its own - window; None: all earlier ones.
    blocks: int64 [B, P + K], tokens of equal number (0 or more) see each other in both directions.
    """
    config = text_model.config
    keys = slots.shape[1]
    past = keys - hidden.shape[1]
    spare = (0, width - keys)
    clock = _Clock(past, width)
    valid = None if valid is None else pad(valid, spare)
    plain = config._attn_implementation in PLAIN
    if window is None and blocks is None and (valid is None or not plain):
        return create_causal_mask(config, hidden, valid, clock, layer_idx=0)
    if window is not None and "flash" in config._attn_implementation:
        raise Unsupported(
            f"FlashAttention counts a sliding window of {window} tokens in cached tokens, and pruning takes some away. "
            "Load the model with attn_implementation='sdpa'."
        )
    slots = pad(slots, spare)
    blocks = None if blocks is None else pad(blocks, spare, value=-1)
    if plain:  # the library would look for padding, and map its functions over every pair of indices
        seen = _visible(slots, past, hidden.shape[1], valid, window, blocks, blocks_ignore_window)
        return as_mask(text_model, seen, hidden.dtype)
    in_window = None if window is None else _in_window(slots, window)
    in_block = None if blocks is None else _in_block(blocks)
    near = in_window
    if in_window is not None and in_block is not None and blocks_ignore_window:
        near = or_masks(in_window, in_block)
    return create_causal_mask(
        config, hidden, valid, clock, layer_idx=0, or_mask_function=in_block, and_mask_function=near
    )


def _visible(
    slots: Tensor,
    past: int,
    length: int,
    valid: Tensor | None,
    window: int | None,
    blocks: Tensor | None,
    blocks_ignore_window: bool,
) -> Tensor:
    """bool [B, 1, K, keys]: which keys the last `length` rows of those behind `past` see; arguments as above."""
    keys = torch.arange(slots.shape[1], device=slots.device)
    seen = (keys <= keys[past : past + length, None])[None]
    own = slice(past, past + length)
    same = None
    if blocks is not None:
        numbers = blocks[:, own, None]
        same = (numbers == blocks[:, None]) & (numbers >= 0)
        seen = seen | same
    if window is not None:
        near = slots[:, None] > slots[:, own, None] - window
        seen = seen & (near if same is None or not blocks_ignore_window else near | same)
    if valid is not None:
        seen = seen & valid[:, None]
    return seen.expand(len(slots), -1, -1)[:, None]


def _in_window(slots: Tensor, window: int) -> Callable[..., Any]:
    return lambda batch, head, q, k: slots[batch, k] > slots[batch, q] - window


def _in_block(blocks: Tensor) -> Callable[..., Any]:
    return lambda batch, head, q, k: (blocks[batch, q] == blocks[batch, k]) & (blocks[batch, q] >= 0)


def same_as_causal(seen: Tensor, valid: Tensor, blocks: Tensor | None, past: int) -> bool:
    """Whether a prepared mask, bool [B, 1, L, keys], hides just the future outside blocks (int64 [B, past + L]) and
    padding (valid: bool [B, keys])."""
    length, keys = seen.shape[-2:]
    row = torch.arange(length, device=seen.device)[:, None] + past
    causal = torch.arange(keys, device=seen.device) <= row
    seen_ahead = causal[None]
    if blocks is not None:
        numbers = pad(blocks[:, -length:], (past, keys - past - length), value=-1)
        own = numbers[:, past : past + length, None]
        seen_ahead = causal | ((own == numbers[:, None]) & (own >= 0))
    expected = (seen_ahead & valid[:, None])[:, None]
    # Rows of padding see nothing that matters, and versions differ in what they show them.
    real = valid[:, None, past : past + length, None]
    return bool(((seen == expected) | ~real).all())
