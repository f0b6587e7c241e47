"""What a stream remembers: rows of the cache, and the frame or the turn that each belongs to."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tokenprune.core.positions import compact
from tokenprune.engine.rotate import rotate
from tokenprune.engine.rows import Rows

NONE = -1  # number of the frame or turn of a row that belongs to none


class Unread(NamedTuple):
    """A token that stands in the conversation, but that the model has not read yet: it goes ahead of the next piece."""

    token: int
    frame: int
    turn: int


@dataclass(eq=False)
class Memory:
    """One state of a stream. Nothing in it is changed in place, so a copy costs nothing and is safe from its original.

    rows: tensors [1, R, ...] that follow the rows of the cache, by name:
        frame, turn: int64, the number of the frame or turn that a row belongs to, NONE for the opening;
        cell: int64, of a visual token in its frame, NONE for text;
        positions: int64 [1, R, axes], position ids.
    features: [visual tokens, d]. next: the first position id that is free. seen, asked: frames and turns so far; first:
    the oldest turn that is remembered.
    """

    cache: DynamicCache
    rows: Rows
    features: Tensor | None
    unread: tuple[Unread, ...]
    next: int = 0
    seen: int = 0
    asked: int = 0
    first: int = 0
    thinnings: int = 0

    @classmethod
    def empty(cls, model: PreTrainedModel, axes: int, opening: list[int]) -> Memory:
        """Nothing but the tokens that open a conversation, unread."""
        none = torch.empty(1, 0, dtype=torch.long, device=model.device)
        unread = tuple(Unread(token, NONE, NONE) for token in opening)
        rows = Rows({"frame": none, "turn": none, "cell": none, "positions": none[..., None].expand(1, 0, axes)})
        return cls(DynamicCache(config=model.config), rows, None, unread)

    def copy(self) -> Memory:
        """The same state, which can go another way."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return replace(self, cache=cache)

    @property
    def layers(self) -> list[Any]:
        """Those of the cache; the library types them as some that hold no keys."""
        return self.cache.layers

    @property
    def frame(self) -> Tensor:
        """int64 [R]: the frame that each row belongs to."""
        return self.rows["frame"][0]

    @property
    def turn(self) -> Tensor:
        """int64 [R]: the turn that each row belongs to."""
        return self.rows["turn"][0]

    @property
    def cell(self) -> Tensor:
        """int64 [R]: the number of a visual token in its frame."""
        return self.rows["cell"][0]

    @property
    def positions(self) -> Tensor:
        """int64 [axes, R]: position ids."""
        return self.rows["positions"][0].T

    @property
    def visual(self) -> Tensor:
        """bool [rows]: which rows are visual tokens."""
        return self.cell >= 0

    @property
    def visual_tokens(self) -> int:
        """Visual tokens in the cache."""
        return 0 if self.features is None else len(self.features)

    @property
    def ends_in_turn(self) -> bool:
        """Whether an answer came last, not a frame."""
        turn = self.unread[-1].turn if self.unread else int(self.turn[-1])
        return turn != NONE

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers if layer.is_initialized)

    def add(self, frame: Tensor, turn: Tensor, visual: Tensor, positions: Tensor, features: Tensor) -> None:
        """Rows that the model has just read, what was unread included. visual: bool [rows]; features: of those."""
        cell = torch.where(visual, visual.long().cumsum(0) - 1, NONE)
        self.rows = self.rows.append(frame=frame[None], turn=turn[None], cell=cell[None], positions=positions.T[None])
        self.features = features if self.features is None else torch.cat([self.features, features])
        self.next = int(positions.max()) + 1
        self.unread = ()

    def left(self, alive: Tensor, first: int) -> Tensor:
        """bool [rows]: what stays where of the visual tokens only `alive` do, and of the turns only those from `first`
        on. The text that opens and closes a frame goes with its last token."""
        text = torch.isin(self.frame, self.frame[alive]) & ~self.visual
        other = (self.frame == NONE) & ((self.turn == NONE) | (self.turn >= first))
        return alive | text | other

    def end(self, alive: Tensor, first: int) -> int:
        """The first position that would be free with what `left` says renumbered, and what is unread read."""
        return self.next - int(self._renumber(self.left(alive, first))[1]) + len(self._unread(alive, first))

    def leave(self, alive: Tensor, first: int, text_model: PreTrainedModel | None) -> None:
        """Forget all but what `left` says. text_model: turns the keys to positions without gaps; None: ids stay."""
        keep, positions = self.left(alive, first), self.positions
        index = keep.nonzero().flatten()
        self.unread, self.first = self._unread(alive, first), first
        rows = self.rows
        if text_model is not None:
            new, moved = self._renumber(keep)
            self.next -= int(moved)
            rows = rows.replace(positions=new.T[None])
        if self.features is not None:
            self.features = self.features[keep[self.visual]]
        self.rows, _ = rows.take(keep[None], len(index))
        change = self.positions - positions[:, index]
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[:, :, index], layer.values[:, :, index]
            if text_model is not None:
                layer.keys = rotate(text_model, layer.keys, change)

    def _renumber(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Position ids [axes, rows] without the gaps that rows outside `keep` leave, and how far the end moves."""
        # What loses nothing moves like text. Runs of one kind: the visual tokens of a frame, or text that goes.
        thinned = self.visual & torch.isin(self.frame, self.frame[self.visual & ~keep])
        kind = torch.where(thinned, self.frame, torch.where(keep, -1, -2))
        edges = (kind.diff() != 0).nonzero().flatten() + 1
        pieces = torch.tensor_split(torch.arange(len(kind), device=kind.device), edges.cpu())
        kinds = kind[torch.cat([edges.new_zeros(1), edges])].tolist() if len(kind) else []
        spans = [rows for rows, own in zip(pieces, kinds, strict=True) if own != -1]
        return compact(self.positions, keep, spans)

    def _unread(self, alive: Tensor, first: int) -> tuple[Unread, ...]:
        frames = {NONE, *self.frame[alive].unique().tolist()}
        return tuple(row for row in self.unread if row.frame in frames and (row.turn == NONE or row.turn >= first))
