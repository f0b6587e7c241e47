"""A cache layer that keeps everything and shows attention a part of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from tokenprune.core.selection import Selection, order_of
from tokenprune.engine.cache import HeldRows, Incoming, PrunedLayer, fill
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
        return cls(cls._roomy(keys, length + SPARE), cls._roomy(values, length + SPARE), length)

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
        self.buffer: Buffer | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values, buffer = self.keys, self.values, self.buffer
        if keys is None or values is None or not keys.numel():
            buffer = Buffer.of(key_states, value_states)
        elif buffer is None or buffer.keys.data_ptr() != keys.data_ptr() or buffer.keys.shape[:2] != keys.shape[:2]:
            # After an operation on the batch.
            buffer = Buffer.of(torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2))
        else:
            buffer.length = keys.shape[2]  # less after a crop
            buffer.append(key_states, value_states)
        self.buffer, self.keys, self.values = buffer, buffer.keys, buffer.values
        return buffer.keys, buffer.values


@dataclass(eq=False)
class Shown:
    """The rows that attention sees instead of all. by: the choice that they are, and its version."""

    buffer: Buffer
    rows: HeldRows
    by: tuple[VisibleTokens, int]


class RetainedLayer(PrunedLayer):
    """A layer whose rows are all kept; while it is narrowed, attention gets a copy of some of them and what came since.

    `held.visual` is always there.
    """

    retains = True

    def __init__(self, store: CacheLayerMixin, window: int | None = None) -> None:
        if type(store) is not DynamicLayer:
            raise Unsupported(
                f"A stage at every decoding step cannot work on {type(store).__name__}. Use DynamicCache, the default."
            )
        grown = GrowingLayer()
        if store.is_initialized:
            fill(grown, store)
        super().__init__(grown, window)

    def _clear(self) -> None:
        super()._clear()
        self.visible_tokens: VisibleTokens | None = None
        self.shown: Shown | None = None
        self._visual_rows: tuple[list[int], Tensor, Tensor] | None = None

    @property
    def visual(self) -> Tensor:
        """bool [B, R]: which rows are visual tokens."""
        rows = self.filled
        return torch.zeros_like(rows.valid) if rows.visual is None else rows.visual

    def look_at(self, visible_tokens: VisibleTokens | None) -> None:
        """From now on attention sees text, these visual tokens, and what is added; None: everything."""
        if visible_tokens is None or visible_tokens.chosen is None:
            self.widen()
            return
        by, rows = (visible_tokens, visible_tokens.version), self.filled
        if self.shown is not None and self.shown.by == by:
            return
        last = visible_tokens.chosen.shape[1] - 1
        mask = ~self.visual | visible_tokens.chosen.to(rows.slots.device).gather(1, rows.slots.clamp(max=last))
        picked = Selection.of(mask & rows.valid)
        keys, values = gather_cache(self.store.keys, self.store.values, picked.index, SPARE)
        assert picked.valid is not None, "Selection.of says what is there"
        shown = HeldRows(picked.valid, rows.slots.gather(1, picked.index), rows.shift)
        self.shown = Shown(Buffer(keys, values, picked.index.shape[1]), shown, by)

    def visual_rows(self) -> tuple[list[int], Tensor, Tensor]:
        """Visual tokens of each row of the batch, their rows int64 [B, V] ascending, and bool [B, V], whether there is
        one."""
        if self._visual_rows is None:
            visual = self.visual
            counts = visual.sum(1).tolist()
            rows = order_of(visual.long())[:, : max(counts)]
            self._visual_rows = counts, rows, visual.gather(1, rows)
        return self._visual_rows

    def widen(self) -> None:
        """Show everything again."""
        self.shown = None

    def seen(self) -> HeldRows:
        """What is known of the rows that attention sees."""
        return super().seen() if self.shown is None else self.shown.rows

    def width(self, rows: int) -> int:
        return (self.rows if self.shown is None else self.shown.buffer.length) + rows

    def _note(self, news: Incoming, new: int) -> None:
        valid, slots = news.valid[:, -new:], news.slots[:, -new:]
        visual = torch.zeros_like(valid) if news.visual is None else news.visual.to(valid.device)
        if self.held is not None:
            visual = torch.cat([self.visual, visual], dim=1)
        if news.visual is not None:
            self._visual_rows = None
        if self.shown is None:
            self.held = HeldRows(news.valid, news.slots, news.shift, visual, news.padded)
            return
        rows = self.filled
        self.shown.rows = HeldRows(news.valid, news.slots, news.shift)
        self.held = HeldRows(torch.cat([rows.valid, valid], 1), torch.cat([rows.slots, slots], 1), news.shift, visual)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        whole = super().update(key_states, value_states)
        if self.shown is None:
            return whole
        buffer = self.shown.buffer
        buffer.append(key_states, value_states)
        return buffer.keys, buffer.values

    def crop(self, tokens_to_remove: int) -> None:
        self.widen()
        super().crop(tokens_to_remove)
        if tokens_to_remove:
            self._visual_rows = None

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        self.widen()
        super()._each(change)
        self._visual_rows = None
        if self.visible_tokens is not None:
            self.visible_tokens.each(change)

    def nbytes(self) -> tuple[int, int]:
        """Bytes held in all, and bytes that attention reads in a step."""
        whole = self.store.buffer.nbytes()
        if self.shown is None:
            return whole, whole
        return whole + self.shown.buffer.nbytes(), self.shown.buffer.nbytes()
