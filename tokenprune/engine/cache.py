"""The cache layer of a pruned model: physically short, logically as long as the prompt."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    StaticLayer,
)

from tokenprune.errors import Unsupported

CACHE_NAMES = ("cache", "past_key_values")  # since transformers 5.24, and before; callers may still use the older one
BUCKET = 256  # rows of a compiled cache: prompts that end in the same bucket share a graph


def cache_name(module: nn.Module) -> str:
    """What the forward of a model calls the cache that it takes. Raises `Unsupported` where it takes none by a name
    that is known here: written under another one it would be ignored."""
    taken = inspect.signature(type(module).forward).parameters
    for name in CACHE_NAMES:
        if name in taken:
            return name
    raise Unsupported(
        f"The forward of {type(module).__name__} takes no {' or '.join(CACHE_NAMES)}, so its cache cannot be "
        "shortened. Use a model class of a transformers version that tokenprune supports."
    )


def cache_in(arguments: Mapping[str, Any]) -> Cache | None:
    """The cache among a forward's keyword arguments or in its output, by whichever name it goes."""
    there = arguments.keys()  # an output of transformers answers to the older name too, and complains
    return next((arguments[name] for name in CACHE_NAMES if name in there and arguments[name] is not None), None)


@dataclass(frozen=True)
class HeldRows:
    """What is known of the rows that a cache layer holds.

    valid: bool [B, R], False for padding. slots: int64 [B, R], place in the whole unpruned sequence.
    shift: int64 [B], by how much the position ids after these rows are lowered (`compact`), or None.
    visual: bool [B, R], which of them are visual tokens; None where nobody asks. padded: whether one of `valid` may be
    False, which the host knows.
    """

    valid: Tensor
    slots: Tensor
    shift: Tensor | None = None
    visual: Tensor | None = None
    padded: bool = True

    def each(self, change: Callable[[Tensor], Tensor]) -> HeldRows:
        """The same after an operation on the batch."""
        shift, visual = (None if x is None else change(x) for x in (self.shift, self.visual))
        return HeldRows(change(self.valid), change(self.slots), shift, visual, self.padded)

    def part(self, rows: slice) -> HeldRows:
        """Some of the rows."""
        visual = None if self.visual is None else self.visual[:, rows]
        return HeldRows(self.valid[:, rows], self.slots[:, rows], self.shift, visual, self.padded)


@dataclass
class Incoming:
    """What the next `update` of a layer stands for.

    length: prompt tokens it represents. tail: how many at its end are rows of their own (length: all of them).
    valid: bool [B, rows], False for padding, and slots: int64 [B, rows], place in the whole unpruned sequence; both of
    all rows of the layer, the new ones last. shift: int64 [B], by how much the position ids after these rows are
    lowered (`compact`), or None. forget: rows at the start that no later token can see. asked: whether these rows were
    chosen with the question in view. visual: bool [B, new rows], which of them are visual tokens; None: none. padded:
    as in `HeldRows`.
    """

    length: int
    tail: int
    valid: Tensor
    slots: Tensor
    shift: Tensor | None = None
    forget: int = 0
    asked: bool = False
    visual: Tensor | None = None
    padded: bool = True


class PrunedLayer(CacheLayerMixin):
    """Keys and values of the survivors, kept by a layer of the library's own (dynamic, static or quantized).

    `get_seq_length` is the logical length (the prompt's), so that the library's clocks, continuation and position ids
    keep working; `rows` is the physical one. What is known of the rows (`held`) follows every batch operation.
    """

    retains = False  # whether it shows attention a part of what it holds
    is_sliding = False
    is_compileable = False
    is_croppable = True

    def __init__(self, store: CacheLayerMixin, window: int | None = None) -> None:
        self.store: Any = store  # the base class declares half of what its layers have
        self.window = window
        self.capacity = store.max_cache_len if isinstance(store, StaticLayer) else None
        self.record_past = False
        self.stage_layers: list[int] = []
        self._clear()

    def _clear(self) -> None:
        self.logical = 0
        self.rows = 0
        self.tail = 0  # rows at the end that stand for one token each, the only ones that can be cropped
        self.asked = False
        self.held: HeldRows | None = None  # until there is a row
        self.incoming: Incoming | None = None

    def __repr__(self) -> str:
        window = "" if self.window is None else f", window {self.window}"
        store = type(self.store).__name__
        return f"{type(self).__name__}({self.rows} rows for {self.logical} tokens{window}, in a {store})"

    @property
    def filled(self) -> HeldRows:
        """What is known of the rows, where there are some."""
        assert self.held is not None, "nothing has been read into this layer"
        return self.held

    @property
    def shift(self) -> Tensor | None:
        """int64 [B], by how much position ids after these rows are lowered, or None."""
        return None if self.held is None else self.held.shift

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override] # the store's
        return self.store.keys

    @property
    def values(self) -> Tensor | None:  # type: ignore[override] # the store's
        return self.store.values

    @property
    def is_initialized(self) -> bool:  # type: ignore[override] # the store's
        return self.store.is_initialized

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.store.lazy_initialization(key_states, value_states)

    def expect(self, news: Incoming, rows: int) -> None:
        """Announce what the next `update` brings; a static layer is laid out for its real length."""
        self.incoming = news
        if self.capacity is not None and not self.store.is_initialized:
            self.store = StaticLayer(max_cache_len=self.capacity - news.length + rows)

    def width(self, rows: int) -> int:
        """Keys that attention will see after `rows` more: more than there are in a static layer."""
        return self.rows + rows if self.capacity is None else self.store.max_cache_len

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        news, self.incoming = self.incoming, None
        if news is None:
            raise Unsupported(
                "This cache was filled by a pruned model and cannot be used without it. Start a new cache, or prune "
                "the model again before going on."
            )
        news.valid, news.slots = news.valid.to(key_states.device), news.slots.to(key_states.device)
        self._note(news, key_states.shape[-2])
        self.asked |= news.asked
        self.logical += news.length
        self.rows += key_states.shape[-2]
        self.tail = self.tail + news.length if news.tail == news.length else news.tail
        keys, values = self.store.update(key_states, value_states)
        if news.forget and not self.record_past:
            self._forget(news.forget)
        return keys, values

    def _note(self, news: Incoming, new: int) -> None:
        """Take over what is known of the rows, of which `new` are to come."""
        self.held = HeldRows(news.valid, news.slots, news.shift, padded=news.padded)

    def seen(self) -> HeldRows:
        """What is known of the rows that attention sees."""
        return self.filled

    def grow(self) -> None:
        """Count one more token, which the store has taken by itself; `held` is the caller's to set."""
        self.logical, self.rows, self.tail = self.logical + 1, self.rows + 1, self.tail + 1

    def _forget(self, count: int) -> None:
        self.store.keys, self.store.values = self.store.keys[:, :, count:], self.store.values[:, :, count:]
        self.held = self.filled.part(slice(count, None))
        self.rows -= count
        self.tail = 0  # going back would bring tokens into view that are no longer there

    def get_seq_length(self) -> int:
        return self.logical

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.rows + query_length, self.logical - self.rows

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in older versions

    def activate_past_recording(self) -> None:
        self.record_past = True

    def offload(self) -> None:
        self.store.offload()

    def prefetch(self) -> None:
        self.store.prefetch()

    def reset(self) -> None:
        if self.capacity is None:
            self.store.reset()
        else:
            self.store = StaticLayer(max_cache_len=self.capacity)
        self._clear()

    def crop(self, tokens_to_remove: int) -> None:
        removed = -tokens_to_remove
        if not removed:
            return
        if removed < 0:
            raise Unsupported("A pruned cache is cropped by a negative number: the tokens to remove from its end.")
        if not isinstance(self.store, DynamicLayer) or isinstance(self.store, DynamicSlidingWindowLayer):
            kind = type(self.store).__name__
            raise Unsupported(f"A pruned cache of {kind}s cannot be cropped. Use DynamicCache, the default.")
        if removed > self.tail:
            raise Unsupported(
                f"Cannot crop {removed} tokens: only the last {self.tail} of this cache came after the pruned prompt."
            )
        self.store.crop(tokens_to_remove)
        self.logical -= removed
        self.tail -= removed
        self.rows -= removed
        self.held = self.filled.part(slice(-removed))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.store.reorder_cache(beam_idx)
        self._each(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.store.batch_repeat_interleave(repeats)
        self._each(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.store.batch_select_indices(indices)
        self._each(lambda t: t[indices])

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        self.held = None if self.held is None else self.held.each(change)


class SettledLayer(StaticLayer):
    """Keys and values of one layer, laid out for a whole number of buckets.

    A type of its own, because a graph is chosen by the types of what it is given and not by the hooks that it was
    traced with: no graph of an unpruned model fits a pruned cache, nor the other way round.
    """

    @classmethod
    def of(cls, layer: StaticLayer, rows: int) -> SettledLayer:
        """A copy of a static layer that holds so many rows, with at least as much room."""
        keys, values = layer.keys, layer.values
        assert keys is not None, "the prompt has been through"
        assert values is not None, "the prompt has been through"
        settled = cls(max_cache_len=-(-layer.max_cache_len // BUCKET) * BUCKET)
        settled.update(keys[:, :, :rows], values[:, :, :rows])
        return settled


def adopt(
    cache: Cache,
    stage_layers: list[int],
    windows: list[int | None],
    past_valid: Tensor | None,
    batch: int,
    kinds: dict[int, type[PrunedLayer]],
) -> None:
    """Make the layers of a cache from the first stage on able to be shorter than the prompt; refuse kinds that cannot.

    stage_layers: those that stages stand before. kinds: what a layer becomes where it is not a plain `PrunedLayer`.
    windows: for each decoder layer the size of its sliding window, None for full attention. past_valid: bool [batch,
    past], False for padding among the tokens that the cache holds already.
    """
    refuse_kinds(cache)
    while len(cache.layers) < len(windows):
        cache.layers.append(DynamicLayer())
    cached: list[Any] = cache.layers
    layers = [i for i in range(stage_layers[0], len(windows)) if not keeps_state(cached[i])]
    for layer in (cached[i] for i in layers):
        if isinstance(layer, PrunedLayer) and layer.stage_layers != stage_layers and layer.logical:
            raise Unsupported(
                f"This cache was pruned by stages at {layer.stage_layers}, and now stages stand at {stage_layers}. "
                "Keep the stages as they were, or start a new cache."
            )
    for i in layers:
        if not isinstance(cached[i], PrunedLayer):
            kind = kinds.get(i, PrunedLayer)
            cached[i] = _convert(cached[i], windows[i], past_valid, batch, kind)
        cached[i].stage_layers = stage_layers


def widen(cache: Cache, window: int, length: int) -> None:
    """Make layers that forget what lies behind a window that attention ignores keep everything.

    length: tokens of the whole sequence. Raises `Unsupported` where some have been, or would be, forgotten.
    """
    if length >= window:
        raise Unsupported(
            f"This model's config has sliding_window={window}, which its attention ignores but its cache does not, and "
            f"the sequence has {length} tokens. Set sliding_window=None in the config of the text model."
        )
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            cache.layers[i] = _whole(layer)


def refuse_kinds(cache: Cache) -> None:
    """Raise `Unsupported` for caches that cannot be shortened."""
    if not isinstance(cache, Cache) or isinstance(cache, EncoderDecoderCache):
        raise Unsupported(f"tokenprune cannot shorten a {type(cache).__name__}. Use DynamicCache, the default.")
    if cache.offloading:
        raise Unsupported("tokenprune cannot shorten an offloaded cache yet. Use DynamicCache without offloading.")
    known = (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, SettledLayer)
    for layer in cache.layers:
        if keeps_state(layer):
            continue
        if type(layer).__name__ == "DummyLayer":
            raise Unsupported("Layers of this model use the keys of earlier layers, which pruning cannot shorten.")
        if not isinstance(layer, PrunedLayer) and type(layer) not in known and not hasattr(layer, "_quantize"):
            kind = type(layer).__name__
            why = (
                ", which measure their window in the rows that are there" if kind == "StaticSlidingWindowLayer" else ""
            )
            raise Unsupported(
                f"tokenprune cannot shorten a cache of {kind} layers{why}. Use DynamicCache, the default."
            )


def keeps_state(layer: Any) -> bool:
    """Whether a cache layer holds a state of one size in place of keys, and stays as it is."""
    return hasattr(layer, "recurrent_states") and not isinstance(layer, CacheLayerMixin)


def _whole(layer: Any) -> DynamicLayer:
    """A layer that forgets nothing, with what one of a window holds."""
    whole = DynamicLayer()
    if layer.is_initialized:
        fill(whole, layer)
    return whole


def fill(layer: DynamicLayer, other: CacheLayerMixin) -> None:
    """Put what another layer holds into an empty one, without copying it."""
    keys, values = other.keys, other.values
    assert keys is not None, "an initialized layer has keys"
    assert values is not None, "an initialized layer has values"
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values


def _convert(
    layer: Any, window: int | None, past_valid: Tensor | None, batch: int, kind: type[PrunedLayer]
) -> PrunedLayer:
    past = int(layer.get_seq_length()) if layer.is_initialized else 0
    pruned: PrunedLayer
    if type(layer) is DynamicSlidingWindowLayer:
        pruned = PrunedLayer(_whole(layer), window)
        pruned.record_past = getattr(layer, "record_past", False)
    else:
        pruned = kind(layer, window)
    if past:
        rows = pruned.store.keys.shape[-2] if type(layer) is DynamicSlidingWindowLayer else past
        device = layer.keys.device
        pruned.logical, pruned.rows, pruned.tail = past, rows, rows if rows == past else 0
        slots = torch.arange(past - rows, past, device=device).expand(batch, -1)
        whole = torch.ones(batch, rows, dtype=torch.bool, device=device)
        valid = whole if past_valid is None else past_valid[:, past - rows : past].to(device)
        pruned.held = HeldRows(valid, slots, padded=past_valid is not None)
    return pruned
