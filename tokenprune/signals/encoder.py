"""Signals of the vision encoder: where each is read, and how attention becomes one number for each patch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.errors import Unsupported
from tokenprune.signals.given import of_unit
from tokenprune.signals.need import Need
from tokenprune.signals.reading import Reading, Selectable

# Of queries and keys [N, H, patches, e], scaling and mask: float32 [N, patches] or [N, patches, c].
Reader = Callable[[Tensor, Tensor, float, "Tensor | None", Need], Tensor]


@dataclass(frozen=True)
class EncoderSource:
    """Where a signal of the vision encoder comes from.

    read: of the attention of a layer; None: the layer's output is the signal, or the pixels are.
    layer: `chosen` (whose output becomes the features), `first`, `last`, or `depth` (as the need says); by variant
    where they differ.
    pixels: of the pixels of each patch [N, patches, 3, pixels] to float [N, patches], before any layer.
    """

    read: Reader | None = None
    layer: dict[str, str] | str = "chosen"
    pixels: Callable[[Tensor], Tensor] | None = None

    def layer_of(self, need: Need) -> str:
        """`chosen`, `first`, `last` or `depth`."""
        return self.layer if isinstance(self.layer, str) else self.layer.get(need.variant, "chosen")


def encoder_signal(reading: Reading, units: list[Selectable], need: Need) -> Tensor:
    """What was read in the encoder, of the tokens that are left: [S, n, ...]."""
    return torch.stack([of_unit(reading.vision[need], u) for u in units]).to(reading.hidden.device)


def read_keys(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None, need: Need) -> Tensor:
    """Keys, mean over heads; float32 [N, patches, e]."""
    return key.float().mean(1)


def read_saliency(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None, need: Need) -> Tensor:
    """Attention as the variant of the need says; float32 [N, patches]."""
    if need.variant == "global":
        return focused_attention(query, key, scaling, mask, need.threshold)
    return SALIENCY[need.variant](query, key, scaling, mask)


def received_attention(
    query: Tensor,
    key: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    focus: Tensor | None = None,
    chunk: int = 256,
) -> Tensor:
    """Attention each position receives in a bidirectional layer: mean over heads and over the queries that see it.

    mask: [N or 1, 1, queries, keys] as kernels take it (bool: True is seen; float: added), or None. focus: float
    [N, queries], how much each query counts; default: all alike. float32 [N, keys].
    """
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # shared between heads
    total = key.new_zeros(key.shape[0], key.shape[2], dtype=torch.float32)
    focus = total.new_ones(1, query.shape[2]) if focus is None else focus
    for start in range(0, query.shape[2], chunk):
        rows = slice(start, start + chunk)
        paid = _mask(query[:, :, rows].float() @ key.float().mT * scaling, mask, start).softmax(-1).mean(1)
        total += (paid * focus[:, rows, None]).sum(1)
    return total / _over_seen(focus, mask, key.shape[2]).clamp(min=1)


def focused_attention(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None, times: float) -> Tensor:
    """The same from the queries alone that receive more than `times` the mean themselves; float32 [N, keys].

    Where no query does, all of them count.
    """
    received = received_attention(query, key, scaling, mask)
    everyone = torch.ones_like(received)
    mean = _over_seen(received, mask, key.shape[2]) / _over_seen(everyone, mask, key.shape[2])
    focus = (received > times * mean).float()
    focus = torch.where(_over_seen(focus, mask, key.shape[2]) > 0, focus, everyone)
    return received_attention(query, key, scaling, mask, focus)


def first_row_attention(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """Attention that the first position pays in a bidirectional layer, mean over heads; float32 [N, keys]."""
    scores = _mask(query[:, :, :1].float() @ key.float().mT * scaling, mask, 0)
    return scores.softmax(-1).mean(1).squeeze(1)


def joint_row_attention(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """Attention of the first position as if all heads were one wide head; float32 [N, keys]."""
    scores = (query[:, :, :1].float() @ key.float().mT).sum(1, keepdim=True) * scaling / query.shape[1] ** 0.5
    return _mask(scores, mask, 0).softmax(-1)[:, 0, 0]


def _over_seen(values: Tensor, mask: Tensor | None, keys: int) -> Tensor:
    """For each key the sum of `values` [N, queries] over the queries that see it; [N, keys] (seeing is mutual)."""
    if mask is None:
        return values.sum(-1, keepdim=True).expand(-1, keys)
    rows = mask[:, None, None] if mask.ndim == 2 else mask
    rows = rows[:, 0, :, :keys].expand(-1, values.shape[1], -1)
    seen = rows > torch.finfo(rows.dtype).min / 2 if rows.is_floating_point() else rows.bool()
    return (values[:, None] @ seen.to(values.dtype)).squeeze(1)


def _mask(scores: Tensor, mask: object, first: int) -> Tensor:
    if mask is None:
        return scores
    if not isinstance(mask, Tensor):
        raise Unsupported(
            "The saliency signal cannot be read through flex attention's block masks, which padded images need. "
            "Load the model with attn_implementation='sdpa'."
        )
    rows = mask[:, None, None] if mask.ndim == 2 else mask[:, :, first : first + scores.shape[2]]
    rows = rows[..., : scores.shape[3]]
    return (
        scores + rows if rows.is_floating_point() else scores.masked_fill(~rows.bool(), torch.finfo(scores.dtype).min)
    )


SALIENCY = {"cls": first_row_attention, "joint": joint_row_attention, "received": received_attention}
