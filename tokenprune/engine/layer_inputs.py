"""What decoder layers get for the rows that are left: cos and sin, masks, and what their caches are told."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, StaticLayer

from tokenprune.core.selection import gather_rows
from tokenprune.engine.cache import Incoming, PrunedLayer
from tokenprune.engine.masks import Kind, attention_mask
from tokenprune.engine.token_state import TokenState


@dataclass(frozen=True)
class Piece:
    """What stays the same through one pass.

    model: the text model. kinds: of each decoder layer. length: columns of this pass, removed ones counted.
    past: tokens before it, removed ones counted.
    tail: tokens after the last span: rows that stay, one for one.
    past_valid: bool [B, P], which cached tokens of an unpruned layer are not padding; None: all.
    blocks: int64 [B, L], tokens of equal number (0 or more) see each other in both directions; None: nobody does.
    block_layers: the one type of layers that has blocks; None: all have.
    """

    model: PreTrainedModel
    kinds: list[Kind]
    length: int
    past: int
    tail: int
    past_valid: Tensor | None = None
    blocks: Tensor | None = None
    blocks_ignore_window: bool = False
    block_layers: str | None = None

    def blocks_of(self, i: int) -> Tensor | None:
        """The blocks that layer i has."""
        return self.blocks if self.block_layers in (None, self.kinds[i].type) else None


@dataclass
class LayerInputs:
    """The inputs of a group of layers that share their rows, made once for all layers of a kind.

    past_shift: int64 [B], by how much earlier prompts lowered the positions of this group, or None.
    moved: int64 [B], by how much this prompt lowers them on top, or None.
    """

    piece: Piece
    state: TokenState
    past_shift: Tensor | None = None
    moved: Tensor | None = None
    _ropes: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _masks: dict[Any, Any] = field(default_factory=dict)
    _keys: dict[Any, tuple[Tensor, Tensor, int]] = field(default_factory=dict)

    def enter(self, layer: PrunedLayer | None) -> LayerInputs:
        """Those of the group that begins with a layer: its cache may have another length and another shift."""
        return self.shift_by(None if layer is None else layer.shift)

    def shift_by(self, shift: Tensor | None) -> LayerInputs:
        """Those of a group whose positions earlier prompts lowered by `shift`, int64 [B], or not at all (None)."""
        state, ropes = self.state, self._ropes
        if shift is not None or self.past_shift is not None:
            none = state.column.new_zeros(state.batch)
            change = (none if shift is None else shift) - (none if self.past_shift is None else self.past_shift)
            state, ropes = state.lower(change), {}
        return LayerInputs(self.piece, state, shift, self.moved, ropes)

    def rope(self, i: int, hidden: Tensor, given: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """cos and sin [B, K, e] of the current rows: what the text model computed (`given`), where it knew the
        positions."""
        state, kind = self.state, self.piece.kinds[i].type
        if kind not in self._ropes:
            if given is not None and state.computed:
                self._ropes[kind] = given
            elif given is not None and not state.renumbered:
                native = state.rows["native"]
                cos, sin = (gather_rows(r, native.to(r.device)) for r in given)
                self._ropes[kind] = cos, sin
            else:
                self._ropes[kind] = rotary(
                    self.piece.model, hidden, state.positions, layer_type(self.piece.model, kind)
                )
        return self._ropes[kind]

    def keys(self, i: int, layer: PrunedLayer | None) -> tuple[Tensor, Tensor, int]:
        """valid and slots [B, P + K] of a layer's keys, and how many at their start no later token can see."""
        piece, window = self.piece, self.piece.kinds[i].window
        if window not in self._keys:
            valid, slots = self.state.valid, piece.past + self.state.column
            if layer is not None and layer.rows:
                held = layer.seen()
                valid = torch.cat([held.valid.to(valid.device), valid], dim=1)
                slots = torch.cat([held.slots.to(slots.device), slots], dim=1)
            forget, last = 0, piece.past + piece.length
            if layer is not None and window is not None and last >= window:
                gone = (slots <= last - window) | ~valid
                forget = int(gone.long().cumprod(1).sum(1).min())
            self._keys[window] = valid, slots, forget
        return self._keys[window]

    def seen_keys(self, i: int, layer: CacheLayerMixin | None, width: int) -> tuple[Tensor, Tensor, int]:
        """valid and slots [B, keys] of what attention in layer i gets, and where the rows of this pass begin there."""
        if layer is None or isinstance(layer, PrunedLayer):
            valid, slots, _ = self.keys(i, layer)
            return valid, slots, valid.shape[1] - self.state.width
        before = self.piece.past_valid
        if before is None:
            before = self.state.valid.new_ones(self.state.batch, self.piece.past)
        valid = torch.cat([before, self.state.valid], dim=1)
        total = valid.shape[1]
        slots = torch.arange(total, device=valid.device).expand(self.state.batch, -1)
        if not isinstance(layer, StaticLayer):  # a sliding window may have left early tokens behind
            valid, slots = valid[:, total - width :], slots[:, total - width :]
        return valid, slots, valid.shape[1] - self.state.width

    def visible(self, i: int, layer: CacheLayerMixin | None, width: int, rows: Tensor) -> Tensor:
        """bool [B, m, width]: which keys of layer i the rows int64 [B, m] see."""
        valid, slots, first = self.seen_keys(i, layer, width)
        own = (self.piece.past + self.state.column).gather(1, rows)[..., None]
        visible = valid[:, None] & (slots[:, None] <= own)
        window = self.piece.kinds[i].window
        near = slots[:, None] > own - window if window is not None else torch.ones_like(visible)
        blocks = self.piece.blocks_of(i)
        if blocks is not None:
            numbers = self._block_numbers(blocks, valid.shape[1])
            same = (numbers[:, None] == numbers.gather(1, rows + first)[..., None]) & (numbers[:, None] >= 0)
            visible |= same & valid[:, None]
            if self.piece.blocks_ignore_window:
                near |= same
        return pad(visible & near, (0, width - visible.shape[2]))

    def mask(self, i: int, hidden: Tensor, layer: PrunedLayer | None) -> Any:
        """Attention mask of the current rows over a layer's cached and new keys, in the kernel's own format."""
        piece, state, window = self.piece, self.state, self.piece.kinds[i].window
        blocks = piece.blocks_of(i)
        kind = window, blocks is None
        if kind not in self._masks:
            valid, slots, _ = self.keys(i, layer)
            width = valid.shape[1] if layer is None else layer.width(state.width)
            blocks = None if blocks is None else self._block_numbers(blocks, valid.shape[1])
            reached = window is not None and piece.past + piece.length > window
            self._masks[kind] = attention_mask(
                piece.model,
                hidden,
                valid if self._padded(layer) or width > valid.shape[1] else None,
                slots,
                width,
                window if reached else None,
                blocks,
                piece.blocks_ignore_window,
            )
        return self._masks[kind]

    def whole_mask(self, hidden: Tensor, layer: StaticLayer) -> Any:
        """Attention mask of the current rows over a static layer that no stage stands before."""
        valid, slots, _ = self.seen_keys(0, layer, layer.max_cache_len)
        return attention_mask(self.piece.model, hidden, valid, slots, layer.max_cache_len)

    def padding_mask(self) -> Tensor | None:
        """bool [B, K] for a layer that keeps a state, which must not see padding; None where there is none."""
        return self.state.valid if min(self.state.counts) < self.state.width else None

    def is_of_rows(self, given: Any, width: int) -> bool:
        """Whether something is a tensor [B, width, ...]."""
        return isinstance(given, Tensor) and given.shape[:2] == (self.state.batch, width)

    def follow(self, given: Any, width: int, rows: str = "native") -> Any:
        """Of a tensor [B, width, ...] what belongs to the rows that are left; anything else as it is. rows: `native`
        for one that the text model made for its own rows, `column` for one of the whole prompt."""
        if not self.is_of_rows(given, width):
            return given
        index = self.state.rows[rows].to(given.device)
        return given[torch.arange(len(index), device=given.device)[:, None], index]

    def _padded(self, layer: PrunedLayer | None) -> bool:
        """Whether a key of a layer may be padding, which the host knows."""
        held = layer is not None and layer.rows > 0 and layer.seen().padded
        return held or min(self.state.counts) < self.state.width

    def _block_numbers(self, blocks: Tensor, keys: int) -> Tensor:
        """int64 [B, keys]: the block of each key, the current rows last; cached ones are in none. blocks: [B, L]."""
        own = blocks.gather(1, self.state.column)
        return pad(own, (keys - own.shape[1], 0), value=-1)

    def announce(self, i: int, layer: PrunedLayer, asked: bool) -> None:
        """Tell a cache layer what the rows that it is about to receive stand for. asked: see `Incoming`."""
        shift = self.moved
        if self.past_shift is not None:
            shift = self.past_shift if shift is None else self.past_shift + shift
        valid, slots, forget = self.keys(i, layer)
        news = Incoming(
            length=self.piece.length,
            tail=self.piece.tail if self.state.shortened else self.piece.length,
            valid=valid,
            slots=slots,
            shift=shift,
            forget=forget,
            asked=asked,
            padded=self._padded(layer),
            visual=self.state.visual_rows() if self.state.spans and layer.retains else None,
        )
        layer.expect(news, self.state.width)


def layer_type(text_model: PreTrainedModel, kind: str | None) -> tuple[str, ...]:
    """What a rotary embedding takes beside positions: the type of the layers, where types have their own."""
    rotary: Any = text_model.rotary_emb
    takes = "layer_type" in inspect.signature(rotary.forward).parameters
    return (kind,) if takes and kind is not None else ()


def rotary(
    text_model: PreTrainedModel, hidden: Tensor, positions: Tensor, kind: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """cos and sin [B, K, e] of positions int64 [axes, B, K]. kind: as `layer_type` gives it."""
    module: Any = text_model.rotary_emb
    if len(positions) == 1:  # M-RoPE models take one axis of ids for all
        sections = getattr(module, "mrope_section", None)
        positions = positions[0] if sections is None else positions.expand(len(sections), -1, -1)
    cos, sin = module(hidden, positions, *kind)
    return cos, sin


def position_axes(
    given: Tensor | None, batch: int, length: int, past: int, device: torch.device, text_model: PreTrainedModel
) -> Tensor:
    """Position ids as int64 [axes, B, L], as the text model would make or read them."""
    if given is None:
        given = torch.arange(past, past + length, device=device)[None]
    if given.ndim == 2:
        given = given[None]
    if len(given) == 4 and len(getattr(text_model.rotary_emb, "mrope_section", ())) != 4:
        given = given[1:]  # Qwen: text ids in front of the three M-RoPE axes
    return given.long().expand(-1, batch, -1)
