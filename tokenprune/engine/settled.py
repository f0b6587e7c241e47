"""A pruned static cache as compiled decoding sees it: layers of few lengths, and what each of them needs beside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from tokenprune.engine.cache import HeldRows, PrunedLayer, SettledLayer
from tokenprune.engine.layer_inputs import layer_type, position_axes, rotary
from tokenprune.engine.masks import PLAIN, as_mask
from tokenprune.engine.setup import Setup
from tokenprune.errors import Unsupported


@dataclass(eq=False)
class Group:
    """Layers that hold the same rows.

    first: the first of them. held: what is known of every place of theirs, those still empty among them. rows: places
    that are filled. clock: the same as a tensor, int64 [], which the graph moves on. turns: whether their positions
    differ from those of the first group. kind: what the rotary embedding is told of them. mask, rope: of the step that
    runs, else None.
    """

    first: int
    held: HeldRows
    rows: int
    clock: Tensor
    turns: bool
    kind: tuple[str, ...]
    mask: Tensor | None = None
    rope: tuple[Tensor, Tensor] | None = None


class Settled(Cache):
    """The cache that a compiled step is given in the place of the pruned one, whose keys and values it shares.

    `begin`, `layer_inputs` and `end` are traced. The pruned cache is kept up to date by `follow`, so that anything may
    come after a step.
    """

    def __init__(self, setup: Setup, cache: Cache, mask: Tensor | None) -> None:
        """mask: bool or int [B, tokens], False for padding, or None. Raises `Unsupported` where it cannot be compiled.

        Moves keys and values into layers of whole buckets, one layer after the other.
        """
        _check(setup)
        self.cache = cache
        held: list[Any] = cache.layers
        self.pruned = [(i, layer) for i, layer in enumerate(held) if isinstance(layer, PrunedLayer)]
        self.logical = self.pruned[0][1].logical
        stores = [self._settle(i, held) for i in range(len(held))]
        super().__init__(layers=[*stores])
        self.groups: list[Group] = []
        for first in sorted({0, *setup.stage_layers}):
            kind = layer_type(setup.text_model, setup.layer_kinds[first].type)
            self.groups.append(self._group(first, held[first], stores[first], mask, kind))
        self.gap = self.groups[0].clock.new_tensor(self.logical - self.groups[0].rows)
        self._show()

    def _settle(self, i: int, held: list[Any]) -> SettledLayer:
        """The static layer behind layer i, in its settled form."""
        pruned = held[i] if isinstance(held[i], PrunedLayer) else None
        store = held[i] if pruned is None else pruned.store
        if isinstance(store, SettledLayer):
            return store
        settled = SettledLayer.of(store, self.logical if pruned is None else pruned.rows)
        if pruned is None:
            held[i] = settled
        else:
            pruned.store = settled
        return settled

    def _group(self, first: int, layer: Any, store: SettledLayer, mask: Tensor | None, kind: tuple[str, ...]) -> Group:
        """The group that begins with a layer."""
        keys, clock = store.keys, store.cumulative_length
        assert keys is not None, "the layer has been filled"
        batch, places, device = len(keys), store.max_cache_len, keys.device
        if isinstance(layer, PrunedLayer):
            known, rows = layer.filled, layer.rows
        else:
            rows = self.logical
            whole = torch.ones(batch, rows, dtype=torch.bool, device=device)
            valid = whole if mask is None else mask[:, :rows].to(device).bool()
            known = HeldRows(valid, torch.arange(rows, device=device).expand(batch, -1), padded=mask is not None)
        empty = (0, places - rows)
        valid = pad(known.valid.to(device), empty, value=True).contiguous()
        later = torch.arange(self.logical, self.logical + places - rows, device=device).expand(batch, -1)
        slots = torch.cat([known.slots.to(device), later], dim=1)
        torch._dynamo.mark_static_address(valid)
        shift = self.groups[0].held.shift if self.groups else known.shift
        held = HeldRows(valid, slots, known.shift, padded=known.padded)
        return Group(first, held, rows, clock, known.shift is not shift, kind)

    def _members(self) -> Iterator[tuple[Group, list[PrunedLayer]]]:
        ends = [*(group.first for group in self.groups), len(self.layers)]
        for group, (first, end) in zip(self.groups, pairwise(ends), strict=True):
            yield group, [layer for i, layer in self.pruned if first <= i < end]

    def _show(self) -> None:
        """Tell the pruned layers what they hold by now."""
        self.shown = []
        for group, layers in self._members():
            held = group.held.part(slice(group.rows))
            self.shown.append(held)
            for layer in layers:
                layer.held = held

    def fits(self, cache: Cache) -> bool:
        """Whether a cache is still as the last step left it."""
        if cache is not self.cache:
            return False
        for held, (_, layers) in zip(self.shown, self._members(), strict=True):
            if any(layer.held is not held for layer in layers):
                return False
        return all(layer.store is self.layers[i] for i, layer in self.pruned)

    def follow(self) -> None:
        """Count the token of the step that has run."""
        for group in self.groups:
            group.rows += 1
        for _, layer in self.pruned:
            layer.grow()
        self._show()

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """Tokens so far, removed ones counted, as a tensor that a graph can read: int64 []."""
        return self.groups[0].clock + self.gap

    def begin(self, text_model: PreTrainedModel, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the text model gets in the place of its arguments, for a single new token [B, 1, d]."""
        hidden, given = kwargs["inputs_embeds"], kwargs.get("position_ids")
        if given is None:
            given = self.get_seq_length().reshape(1, 1).expand(len(hidden), 1)
        for group in self.groups:
            places = torch.arange(group.held.valid.shape[1], device=group.clock.device)
            seen = (group.held.valid & (places <= group.clock))[:, None, None]
            group.mask = as_mask(text_model, seen, hidden.dtype)
            if group.turns:
                axes = position_axes(given, len(hidden), 1, 0, hidden.device, text_model)
                group.rope = rotary(text_model, hidden, _lowered(axes, group.held.shift), group.kind)
        first = self.groups[0]
        return kwargs | {"position_ids": _lowered(given, first.held.shift), "attention_mask": first.mask}

    def layer_inputs(self, i: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What layer i gets in the place of its arguments."""
        group = [group for group in self.groups if group.first <= i][-1]
        rope = {"position_embeddings": group.rope} if group.turns else {}
        return kwargs | rope | {"attention_mask": group.mask, "position_ids": None}

    def end(self) -> None:
        """Let go of what belongs to the step."""
        for group in self.groups:
            group.mask = group.rope = None


def _lowered(positions: Tensor, shift: Tensor | None) -> Tensor:
    """Position ids [..., B, 1] lowered by int64 [B], or as they are."""
    return positions if shift is None else positions - shift.to(positions.device)[:, None]


def _check(setup: Setup) -> None:
    """Raise `Unsupported` for what makes a step of this model depend on more than keys, a mask and positions."""
    kernel = setup.text_model.config._attn_implementation
    if kernel not in PLAIN:
        raise Unsupported(
            f"Compiled steps of a pruned model make masks for eager and sdpa attention, and this model runs {kernel}. "
            "Load it with attn_implementation='sdpa', or pass disable_compile=True to generate()."
        )
    if not all(kind.keys for kind in setup.layer_kinds):
        raise Unsupported(
            "This model has layers that keep a state in place of keys, and no test has seen such a model pruned with "
            "compiled steps. Pass disable_compile=True to generate()."
        )
    if any(kind.window is not None for kind in setup.layer_kinds):
        raise Unsupported(
            "Compiled steps of a pruned model make no masks of sliding windows, which count places of the unpruned "
            "sequence. Pass disable_compile=True to generate()."
        )
