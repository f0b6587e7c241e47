"""What a pruned run must equal: the unpatched model at full length, in which dropped tokens are hidden from a layer on.

Shares no code with the engine, so that the two can disagree. Who sees whom is the model's own mask and where a token
stands is the model's own count: tokens are only ever hidden, mixed with each other as a method said, or renumbered.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

Mixture = tuple[int, Tensor, Tensor, Tensor]  # batch row, columns that went in, columns that stayed, weights


@dataclass(frozen=True)
class Outcome:
    """What became of a prompt of B rows and L columns.

    kept: layer -> for each row the int64 columns of removable tokens that are there from this layer on.
    removable: bool [B, L], visual tokens and the separators between them. visual: bool [B, L], without separators.
    unpadded: bool [B, L], False for padding.
    merges: layer -> mixtures of the hidden states that enter it.
    bypass: two layers; what is dropped at the first is back, as it was, at the second.
    looked: for each decoding step, for each layer, for each row the visual columns that are seen (None: all).
    compact: whether positions are renumbered as if the prompt had been short.
    """

    kept: dict[int, list[Tensor]]
    removable: Tensor
    visual: Tensor
    unpadded: Tensor
    merges: dict[int, list[Mixture]] = field(default_factory=dict)
    bypass: tuple[int, int] | None = None
    looked: Sequence[Sequence[list[Tensor] | None]] = ()
    compact: bool = False

    @property
    def length(self) -> int:
        """L."""
        return self.removable.shape[1]

    def stages_at(self, layer: int) -> tuple[int, ...]:
        """The places of the stages whose choice layer `layer` shows, ascending."""
        gone = self.bypass if self.bypass is not None and layer >= self.bypass[1] else ()
        return tuple(sorted(at for at in self.kept if at <= layer and at not in gone))

    def alive(self, stages: Sequence[int]) -> Tensor:
        """bool [B, L]: columns that are there once the last of `stages` has chosen."""
        alive = self.unpadded.clone()
        if stages:
            alive &= ~self.removable
            for row, columns in enumerate(self.kept[stages[-1]]):
                alive[row, columns.to(alive.device)] = True
        return alive


@contextmanager
def hidden_from(text_model: Any, outcome: Outcome) -> Iterator[None]:
    """While this is open, `text_model` hides what `outcome` dropped.

    In a prompt and in the decoding steps after it: one by one with a dynamic cache, or a whole sequence at once without
    a cache. Attention has to be eager or sdpa.
    """
    reference = _Reference(text_model, outcome)
    handles = [text_model.register_forward_pre_hook(reference.before_text, with_kwargs=True)]
    for i, layer in enumerate(text_model.layers):
        handles.append(layer.register_forward_pre_hook(reference.before_layer(i), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Reference:
    """Hooks of one model. first, length: the slots of the tokens of the current call among all of the sequence."""

    def __init__(self, text_model: Any, outcome: Outcome) -> None:
        self.model, self.outcome = text_model, outcome
        self.cache: Any = None
        self.first = self.length = 0
        self.given = torch.empty(0)
        self.waiting = torch.empty(0)
        # Stages -> int64 [axes, B, length], the prompt's positions, and int64 [B], how far what follows moves down.
        self.moved: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def before_text(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        self.cache = kwargs.get("cache", kwargs.get("past_key_values"))
        self.first = 0 if self.cache is None else int(self.cache.get_seq_length())
        embeds = kwargs["inputs_embeds"]
        self.length = embeds.shape[1]
        given = kwargs.get("position_ids")
        if given is None:
            given = torch.arange(self.first, self.first + self.length, device=embeds.device)[None]
        given = given[None] if given.ndim == 2 else given
        text_first = len(given) == 4 and len(getattr(self.model.rotary_emb, "mrope_section", ())) != 4
        self.given = given[1:].long() if text_first else given.long()
        if self.first == 0:
            self.moved.clear()
        planes = kwargs.get("deepstack_visual_embeds")
        if planes is None or not self.outcome.merges:
            return None
        return args, kwargs | {"deepstack_visual_embeds": self._mix_planes(planes, kwargs["visual_pos_masks"])}

    def _mix_planes(self, planes: list[Tensor], mask: Tensor) -> list[Tensor]:
        """Features that are added to visual tokens after later layers are mixed as the tokens themselves are."""
        order = (mask.flatten().cumsum(0) - 1).view_as(mask)
        planes = [plane.clone() for plane in planes]
        for layer, plane in enumerate(planes):
            for at in sorted(at for at in self.outcome.merges if at <= layer):
                for row, sources, stayed, weights in self.outcome.merges[at]:
                    plane[order[row, stayed]] = weights.to(plane.dtype) @ plane[order[row, sources]]
        return planes

    def before_layer(self, i: int) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            hidden = args[0]
            if self.first == 0:
                hidden = self._mix(i, hidden)
            changed: dict[str, Any] = {"attention_mask": self._mask(i, hidden, kwargs.get("attention_mask"))}
            if self.outcome.compact and kwargs.get("position_embeddings") is not None:
                changed["position_embeddings"] = self._rope(i, hidden)
            return (hidden, *args[1:]), kwargs | changed

        return hook

    def _mix(self, i: int, hidden: Tensor) -> Tensor:
        """The hidden states that enter layer i, [B, length, d]: bypassed tokens come back, merged ones are mixed."""
        outcome = self.outcome
        if outcome.bypass is not None and i == outcome.bypass[0]:
            self.waiting = hidden.clone()
        if outcome.bypass is not None and i == outcome.bypass[1]:
            gone = outcome.unpadded & ~outcome.alive([outcome.bypass[0]])
            gone = pad(gone, (0, self.length - outcome.length)).to(hidden.device)
            hidden = torch.where(gone[..., None], self.waiting.to(hidden.device), hidden)
        if i in outcome.merges:
            hidden = hidden.clone()
            for row, sources, stayed, weights in outcome.merges[i]:
                hidden[row, stayed] = (weights.to(hidden.device) @ hidden[row, sources].float()).to(hidden.dtype)
        return hidden

    def _mask(self, i: int, hidden: Tensor, own: Tensor | None) -> Tensor:
        """The model's own mask of layer i as a float mask, less what is dropped: [B, 1, length, keys]."""
        device, total = hidden.device, self.first + self.length
        queries = torch.arange(self.first, total, device=device)
        if own is None:
            keys = torch.arange(total - self._held(i) - self.length, total, device=device)
            allowed = (keys <= queries[:, None])[None, None]
        else:
            keys = torch.arange(total - own.shape[-1], total, device=device)
            allowed = own if own.dtype == torch.bool else own == 0
        alive = pad(self.outcome.alive(self.outcome.stages_at(i)), (0, total - self.outcome.length), value=True)
        allowed = allowed & alive.to(device)[:, None, None, keys]
        for query in range(max(self.first, self.outcome.length), total):
            allowed = self._looking(i, allowed, query - self.first, query - self.outcome.length, keys)
        allowed = allowed | (keys == queries[:, None])  # a row that is gone sees itself, so that it stays finite
        mask = torch.zeros(allowed.shape, dtype=hidden.dtype, device=device)
        return mask.masked_fill(~allowed, torch.finfo(hidden.dtype).min)

    def _held(self, i: int) -> int:
        """How many keys the cache gives to layer i."""
        layers = () if self.cache is None else self.cache.layers
        return layers[i].keys.shape[-2] if i < len(layers) and layers[i].is_initialized else 0

    def _looking(self, i: int, allowed: Tensor, query: int, step: int, keys: Tensor) -> Tensor:
        """Hide what decoding step `step`, row `query` of this call, did not look at in layer i."""
        seen = self.outcome.looked[step][i] if step < len(self.outcome.looked) else None
        if seen is None:
            return allowed
        visible = ~self.outcome.visual
        for row, columns in enumerate(seen):
            visible[row, columns.to(visible.device)] = True
        visible = pad(visible, (0, self.first + self.length - self.outcome.length), value=True)
        allowed = allowed.clone()
        allowed[:, :, query] &= visible.to(keys.device)[:, None, keys]
        return allowed

    def _rope(self, i: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of the renumbered positions in layer i."""
        positions = self._renumber(self.outcome.stages_at(i))
        given = positions[0] if len(positions) == 1 else positions
        takes_type = "layer_type" in inspect.signature(self.model.rotary_emb.forward).parameters
        own = (self.model.config.layer_types[i],) if takes_type else ()
        return self.model.rotary_emb(hidden, given.to(hidden.device), *own)

    def _renumber(self, stages: tuple[int, ...]) -> Tensor:
        """int64 [axes, B, length]: the positions of this call's tokens once these stages have chosen."""
        if self.first > 0:
            return self.given - self.moved[stages][1].to(self.given.device)[:, None]
        if stages not in self.moved:
            self.moved[stages] = self._count_anew(stages)
        return self.moved[stages][0].to(self.given.device)

    def _count_anew(self, stages: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        outcome, added = self.outcome, self.length - self.outcome.length
        positions = self.given.expand(-1, len(outcome.removable), -1).cpu()
        removable = pad(outcome.removable, (0, added)).cpu()
        before = pad(outcome.unpadded, (0, added), value=True).cpu()
        moved = torch.zeros(len(removable), dtype=torch.long)
        for n in range(len(stages)):
            alive = pad(outcome.alive(stages[: n + 1]), (0, added), value=True).cpu()
            positions, shift = renumber(positions, alive, removable, before)
            moved, before = moved + shift, alive
        return positions, moved


def renumber(positions: Tensor, alive: Tensor, removable: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Positions int64 [axes, B, L] after one more stage, and by how much each row's end moved down, int64 [B].

    alive, before: bool [B, L], columns that are there after and before the stage. Token by token, in plain Python:
    runs of text keep their steps, a run of removable tokens closes its gaps on each axis by itself, and what follows it
    starts after the largest position that it still uses.
    """
    result = positions.clone()
    moved = torch.zeros(len(alive), dtype=torch.long)
    for row in range(len(alive)):
        columns = [c for c in range(alive.shape[1]) if before[row, c]]
        old = positions[:, row]
        shift = 0
        for is_media, group in groupby(columns, key=removable[row].tolist().__getitem__):
            run = list(group)
            if not is_media:
                result[:, row, run] = old[:, run] - shift
                continue
            low, high = int(old[:, run].min()), int(old[:, run].max())
            largest = low - 1
            for axis in range(len(positions)):
                used = sorted({int(old[axis, c]) for c in run})
                kept = sorted({int(old[axis, c]) for c in run if alive[row, c]})
                new: dict[int, int] = {}
                at = low
                for n, value in enumerate(kept):
                    at += 0 if n == 0 else value - used[used.index(value) - 1]
                    new[value] = at
                for c in run:
                    if alive[row, c]:
                        result[axis, row, c] = new[int(old[axis, c])] - shift
                largest = max([largest, *new.values()])
            shift += high - largest
        moved[row] = shift
    return result, moved
