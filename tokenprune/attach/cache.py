"""The cache layer of a pruned model: physically short, logically as long as the prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from tokenprune.errors import Unsupported


@dataclass
class Incoming:
    """What the next `update` of a layer stands for.

    length: prompt tokens it represents. tail: how many at its end are rows of their own (length: all of them).
    valid: bool [B, rows], False for padding. shift: int64 [B], by how much the position ids after these rows are
    lowered (`compact`), or None.
    """

    length: int
    tail: int
    valid: Tensor
    shift: Tensor | None


class PrunedLayer(DynamicLayer):
    """Keys and values of the survivors.

    `get_seq_length` is the logical length (the prompt's), so that the library's clocks, continuation and position ids
    keep working; `rows` is the physical one. `valid` [B, rows] and `shift` [B] follow every batch operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self._clear()

    def _clear(self) -> None:
        self.logical = 0
        self.tail = 0  # rows at the end that stand for one token each, the only ones that can be cropped
        self.valid: Tensor | None = None
        self.shift: Tensor | None = None
        self.incoming: Incoming | None = None

    @property
    def rows(self) -> int:
        return 0 if self.keys is None or self.keys.numel() == 0 else self.keys.shape[-2]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        news, self.incoming = self.incoming, None
        if news is None:
            raise Unsupported(
                "This cache was filled by a pruned model and cannot be used without it. Start a new cache, or prune "
                "the model again before going on."
            )
        valid = news.valid.to(key_states.device)
        self.valid = valid if self.valid is None else torch.cat([self.valid, valid], dim=1)
        self.shift = news.shift
        self.logical += news.length
        self.tail = self.tail + news.length if news.tail == news.length else news.tail
        return super().update(key_states, value_states)

    def get_seq_length(self) -> int:
        return self.logical

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.rows + query_length, self.logical - self.rows

    def reset(self) -> None:
        super().reset()
        self._clear()

    def crop(self, tokens_to_remove: int) -> None:
        removed = abs(tokens_to_remove)
        if tokens_to_remove < 0 and removed > self.tail:
            raise Unsupported(
                f"Cannot crop {removed} tokens: only the last {self.tail} of this cache came after the pruned prompt."
            )
        super().crop(tokens_to_remove)
        if removed:
            self.logical -= removed
            self.tail -= removed
            self.valid = self.valid[:, :-removed]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._each(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._each(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._each(lambda t: t[indices])

    def _each(self, change: object) -> None:
        self.valid = None if self.valid is None else change(self.valid)
        self.shift = None if self.shift is None else change(self.shift)


def adopt(cache: Cache, first: int, count: int, past_valid: Tensor | None) -> None:
    """Make layers `first` ... `count` - 1 of a cache able to be shorter than the prompt; refuse kinds that cannot.

    past_valid: bool [B, past], False for padding among the tokens that the cache holds already.
    """
    if not isinstance(cache, DynamicCache):
        raise Unsupported(f"tokenprune cannot shorten a {type(cache).__name__}. Use DynamicCache, the default.")
    if cache.offloading:
        raise Unsupported("tokenprune cannot shorten an offloaded cache yet. Use DynamicCache without offloading.")
    while len(cache.layers) < count:
        cache.layers.append(DynamicLayer())
    for i in range(first, count):
        layer = cache.layers[i]
        if type(layer) is PrunedLayer:
            continue
        if type(layer) is not DynamicLayer:
            raise Unsupported(
                f"tokenprune cannot shorten a cache of {type(layer).__name__} layers. "
                "Use DynamicCache with full attention."
            )
        cache.layers[i] = _converted(layer, past_valid)


def _converted(layer: DynamicLayer, past_valid: Tensor | None) -> PrunedLayer:
    pruned = PrunedLayer()
    if layer.is_initialized and layer.get_seq_length() > 0:
        pruned.lazy_initialization(layer.keys, layer.values)
        pruned.keys, pruned.values = layer.keys, layer.values
        pruned.logical = pruned.tail = layer.get_seq_length()
        whole = torch.ones(layer.keys.shape[0], pruned.rows, dtype=torch.bool, device=layer.keys.device)
        pruned.valid = whole if past_valid is None else past_valid[:, -pruned.rows :].to(whole.device)
    return pruned
