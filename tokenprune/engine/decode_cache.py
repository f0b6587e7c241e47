"""A cache layer that keeps everything and shows attention a part of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from tokenprune.core.selection import Selection, ranked
from tokenprune.engine.cache import Incoming, PrunedLayer
from tokenprune.errors import Unsupported
from tokenprune_kernels.retention import gather_cache

SPARE = 64  # rows of room for new tokens


class Buffer:
    """Keys and values [B, H, R, e] with room at the end: a new token is written in place, not copied together."""

    def __init__(self, keys: Tensor, values: Tensor, length: int) -> None:
        self._keys, self._values, self.length = keys, values, length

    @classmethod
    def of(cls, keys: Tensor, values: Tensor) -> Buffer:
        """A copy of keys and values, and room for `SPARE` more."""
        length = keys.shape[2]
        return cls(*(cls._roomy(x, length + SPARE) for x in (keys, values)), length)

    @staticmethod
    def _roomy(x: Tensor, room: int) -> Tensor:
        buffer = x.new_empty(*x.shape[:2], room, x.shape[3])
        buffer[:, :, : x.shape[2]] = x
        return buffer

    @property
    def keys(self) -> Tensor:
        return self._keys[:, :, : self.length]

    @property
    def values(self) -> Tensor:
        return self._values[:, :, : self.length]

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Write new rows; the room doubles when it is used up."""
        end = self.length + keys.shape[2]
        if end > self._keys.shape[2]:
            room = max(end, 2 * self.length)
            self._keys, self._values = self._roomy(self.keys, room), self._roomy(self.values, room)
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values
        self.length = end

    def nbytes(self) -> int:
        """Bytes in use."""
        return self.keys.nbytes + self.values.nbytes


@dataclass(eq=False)
class VisibleTokens:
    """What a decoding stage last looked at. last: float32 [B, V], what its steps compare with; chosen: bool [B, slots],
    visual tokens that attention sees, None for all; version: counts the choices; columns: what `columns_of` found for a
    version."""

    last: Tensor | None = None
    chosen: Tensor | None = None
    version: int = 0
    columns: tuple[int, list[Tensor]] | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> None:
        """Follow an operation on the rows of the batch."""
        self.last, self.chosen = (None if x is None else change(x) for x in (self.last, self.chosen))
        self.version += 1


class GrowingLayer(DynamicLayer):
    """`DynamicLayer` over a `Buffer`."""

    def __init__(self) -> None:
        super().__init__()
        self.held: Buffer | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.held
        ours = held is not None and held.keys.data_ptr() == self.keys.data_ptr()
        if not (ours and held.keys.shape[:2] == self.keys.shape[:2]):  # after an operation on the batch
            parts = ((self.keys, key_states), (self.values, value_states)) if self.keys.numel() else ()
            whole = [torch.cat(part, dim=-2) for part in parts] or [key_states, value_states]
            self.held = Buffer.of(*whole)
        else:
            held.length = self.keys.shape[2]  # less after a crop
            held.append(key_states, value_states)
        self.keys, self.values = self.held.keys, self.held.values
        return self.keys, self.values


class RetainedLayer(PrunedLayer):
    """A layer whose rows are all kept; while it is narrowed, attention gets a copy of some of them and what came since.

    visual: bool [B, rows], which rows are visual tokens.
    """

    retains = True

    def __init__(self, store: CacheLayerMixin, window: int | None = None) -> None:
        if type(store) is not DynamicLayer:
            raise Unsupported(
                f"A stage at every decoding step cannot work on {type(store).__name__}. Use DynamicCache, the default."
            )
        grown = GrowingLayer()
        if store.is_initialized:
            grown.lazy_initialization(store.keys, store.values)
            grown.keys, grown.values = store.keys, store.values
        super().__init__(grown, window)

    def _clear(self) -> None:
        super()._clear()
        self.visual: Tensor | None = None
        self.visible_tokens: VisibleTokens | None = None
        self.sight: tuple[VisibleTokens, int] | None = None
        self._visual_rows: tuple[list[int], Tensor, Tensor] | None = None
        self.shown: Buffer | None = None
        self.shown_valid: Tensor | None = None
        self.shown_slots: Tensor | None = None

    def look_at(self, visible_tokens: VisibleTokens | None) -> None:
        """From now on attention sees text, these visual tokens, and what is added; None: everything."""
        if visible_tokens is None or visible_tokens.chosen is None:
            self.widen()
            return
        if self.shown is not None and self.sight == (visible_tokens, visible_tokens.version):
            return
        last = visible_tokens.chosen.shape[1] - 1
        mask = ~self.visual | visible_tokens.chosen.to(self.slots.device).gather(1, self.slots.clamp(max=last))
        picked = Selection.of(mask & self.valid)
        shown = gather_cache(self.store.keys, self.store.values, picked.index, SPARE)
        self.shown = Buffer(*shown, picked.index.shape[1])
        self.shown_valid, self.shown_slots = picked.valid, self.slots.gather(1, picked.index)
        self.sight = visible_tokens, visible_tokens.version

    def visual_rows(self) -> tuple[list[int], Tensor, Tensor]:
        """Visual tokens of each row of the batch, their rows int64 [B, V] ascending, and bool [B, V], whether there is
        one."""
        if self._visual_rows is None:
            counts = self.visual.sum(1).tolist()
            place = ranked(self.visual.long())[:, : max(counts)]
            self._visual_rows = counts, place, self.visual.gather(1, place)
        return self._visual_rows

    def widen(self) -> None:
        """Show everything again."""
        self.shown = self.shown_valid = self.shown_slots = None

    def seen(self) -> tuple[Tensor, Tensor, int]:
        """valid and slots [B, R] of the rows that attention sees, and R."""
        if self.shown is None:
            return super().seen()
        return self.shown_valid, self.shown_slots, self.shown.length

    def width(self, rows: int) -> int:
        return self.seen()[2] + rows

    def _note(self, news: Incoming, new: int) -> None:
        valid, slots = news.valid[:, -new:], news.slots[:, -new:]
        visual = torch.zeros_like(valid) if news.visual is None else news.visual.to(valid.device)
        before = torch.zeros_like(news.valid[:, new:]) if self.visual is None else self.visual
        self.visual = torch.cat([before, visual], dim=1)
        if news.visual is not None:
            self._visual_rows = None
        if self.shown is None:
            self.valid, self.slots = news.valid, news.slots
            return
        self.valid, self.slots = torch.cat([self.valid, valid], 1), torch.cat([self.slots, slots], 1)
        self.shown_valid, self.shown_slots = news.valid, news.slots

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        whole = super().update(key_states, value_states)
        if self.shown is None:
            return whole
        self.shown.append(key_states, value_states)
        return self.shown.keys, self.shown.values

    def crop(self, tokens_to_remove: int) -> None:
        self.widen()
        super().crop(tokens_to_remove)
        if tokens_to_remove:
            self.visual, self._visual_rows = self.visual[:, :tokens_to_remove], None

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        self.widen()
        super()._each(change)
        self.visual, self._visual_rows = None if self.visual is None else change(self.visual), None
        if self.visible_tokens is not None:
            self.visible_tokens.each(change)

    def nbytes(self) -> tuple[int, int]:
        """Bytes held in all, and bytes that attention reads in a step."""
        whole = self.store.held.nbytes()
        if self.shown is None:
            return whole, whole
        return whole + self.shown.nbytes(), self.shown.nbytes()
