"""One forward pass of a pruned model: how stages shorten the rows, and what layers get for the rows that stay."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, StaticLayer

from tokenprune.engine.cache import Incoming, PrunedLayer
from tokenprune.engine.select import Merge, choose
from tokenprune.engine.masks import Kind, attention_mask
from tokenprune.engine.rows import Rows
from tokenprune.engine.signals import Heard, Signals
from tokenprune.engine.stopwatch import Stopwatch
from tokenprune.core.merging import weighted_sums
from tokenprune.core.positions import compact, runs
from tokenprune.core.selection import gather_rows, handed
from tokenprune.core.trace import Ranking
from tokenprune.errors import Unsupported
from tokenprune.families.base import Span
from tokenprune.methods.stage import Stage
from tokenprune_kernels.selection import compact as compact_rows

if TYPE_CHECKING:
    from tokenprune.engine.decode_steps import Step

log = logging.getLogger("tokenprune")
Merged = tuple[int, Tensor, Tensor, Tensor]  # batch row, prompt columns that went in, that stayed, weights


@dataclass
class StageRecord:
    """What a stage did: visual tokens before and after for each batch row, and the time its selection takes."""

    before: list[int]
    after: list[int]
    watch: Stopwatch


@dataclass
class DeepStack:
    """Features that are added to the visual tokens after decoder layers. planes: layer -> [m, d]; order: int64 [B, L],
    the row of a plane that a prompt column gets, -1 for none."""

    planes: dict[int, Tensor]
    order: Tensor


@dataclass
class Aside:
    """Rows that wait beside the layers: what they were, their hidden states, and how far positions had moved, by this
    prompt and by earlier ones."""

    rows: Rows
    hidden: Tensor
    moved: Tensor | None
    past_shift: Tensor | None


@dataclass
class Forward:
    """State of one pass. `spans` is empty for decoding steps and text-only prompts."""

    model: PreTrainedModel  # the text model
    kinds: list[Kind]
    length: int
    past: int  # tokens before this pass, removed ones counted
    rows: Rows
    spans: list[Span]
    signals: Signals
    project: Callable[[Tensor], Tensor]  # encoder features of single tokens as rows
    tail: int  # tokens after the last span: rows that stay, one for one
    method: str = ""  # of the stage that runs or ran last
    ends: Tensor | None = None  # int64 [B]: the first column after the prompt in each row; None: all is prompt
    read: list[tuple[int, int]] = field(default_factory=list)  # visual tokens that something is read from
    reads_padding: bool = False  # whether a next token is read from padding on the right
    past_valid: Tensor | None = None  # bool [B, P]: which cached tokens of an unpruned layer are not padding
    past_shift: Tensor | None = None  # int64 [B]: by how much earlier prompts lowered the positions of this group
    moved: Tensor | None = None  # int64 [B]: by how much this prompt lowers them on top
    blocks: Tensor | None = None  # int64 [B, L]: tokens of equal number see each other in both directions
    blocks_ignore_window: bool = False
    deepstack: DeepStack | None = None
    asked: bool = False  # whether a stage so far chose with the question in view
    aside: Aside | None = None
    step: Step | None = None  # of a decoding step, where stages work on those
    past_rows: dict[int, int] = field(default_factory=dict)  # keys that each cache layer held before this pass
    records: list[StageRecord] = field(default_factory=list)
    kept: list[list[Tensor]] = field(default_factory=list)
    rankings: list[Ranking] | None = None
    merged: list[list[Merged]] = field(default_factory=list)
    history: list[tuple[int, Rows]] = field(default_factory=list)  # (first layer, rows) from each stage on

    def __post_init__(self) -> None:
        self.history.append((0, self.rows))

    def __repr__(self) -> str:
        done = ", ".join(f"{one.before} -> {one.after}" for one in self.records) or "no stage yet"
        return f"Forward(prompt of {self.length} after {self.past}, {len(self.spans)} spans, {done}, {self.rows!r})"

    @property
    def first_counts(self) -> list[int]:
        """Tokens of each batch row, padding not counted, before any stage."""
        return self.history[0][1].counts

    def rows_before(self, layer: int) -> Rows:
        """The rows that decoder layer `layer` processes."""
        return [rows for at, rows in self.history if at <= layer][-1]

    @property
    def batch(self) -> int:
        return self.rows.valid.shape[0]

    def visual_counts(self) -> list[int]:
        """Visual tokens still there, for each batch row."""
        counts = [0] * self.batch
        for span, columns in zip(self.spans, self.rows.columns, strict=True):
            counts[span.row] += len(columns)
        return counts

    def visual_rows(self) -> Tensor:
        """bool [B, K]: which rows are visual tokens."""
        found = torch.zeros_like(self.rows.valid)
        for span, columns in zip(self.spans, self.rows.columns, strict=True):
            found[span.row, columns] = True
        return found

    # Signals.

    def query_rows(self) -> Tensor:
        """int64 [B]: the row of the last prompt token (before an answer or drafts, and before right padding)."""
        usable = self.rows.valid
        if self.ends is not None:
            usable = usable & (self.rows.prompt_columns() < self.ends[:, None])
        place = torch.arange(1, self.rows.length + 1, device=usable.device)
        return (usable * place).argmax(-1)

    def seen_keys(self, i: int, layer: CacheLayerMixin | None, width: int) -> tuple[Tensor, Tensor, int]:
        """valid and slots [B, keys] of what attention in layer i gets, and where the rows of this pass begin there."""
        if layer is None or isinstance(layer, PrunedLayer):
            valid, slots, _ = self._keys(i, layer)
            return valid, slots, valid.shape[1] - self.rows.length
        before = self.past_valid
        if before is None:
            before = self.rows.valid.new_ones(self.batch, self.past)
        valid = torch.cat([before, self.rows.valid], dim=1)
        total = valid.shape[1]
        slots = torch.arange(total, device=valid.device).expand(self.batch, -1)
        if not isinstance(layer, StaticLayer):  # a sliding window may have left early tokens behind
            valid, slots = valid[:, total - width :], slots[:, total - width :]
        return valid, slots, valid.shape[1] - self.rows.length

    # Stages.

    def enter_group(self, layer: PrunedLayer | None) -> None:
        """Start a group of layers that share their rows: its cache may have another length and another shift."""
        self._shift_to(None if layer is None else layer.shift)

    def _shift_to(self, shift: Tensor | None) -> None:
        rows = replace(self.rows, masks={}, keys={})
        if shift is not None or self.past_shift is not None:
            change = (0 if shift is None else shift) - (0 if self.past_shift is None else self.past_shift)
            rows = replace(rows, positions=rows.positions - change[:, None], renumbered=True, ropes={})
        self.rows, self.past_shift = rows, shift

    def run_stage(self, stage: Stage, hidden: Tensor, positions_policy: str) -> Tensor:
        """Select, shorten the rows and return the shortened hidden states [B, K', d]."""
        if stage.method.recalls:
            hidden = self._recall(hidden)
        self.method = stage.method.name
        before = self.visual_counts()
        watch = Stopwatch(hidden.device)
        chosen = choose(stage, self, hidden)
        watch.stop()
        if stage.method.sets_aside:
            self.aside = Aside(self.rows, hidden, self.moved, self.past_shift)
        columns = self.rows.prompt_columns()
        self.merged.append(
            [(one.row, columns[one.row, one.sources], columns[one.row, one.kept], one.weights) for one in chosen.merges]
        )
        hidden = self._merge(chosen.merges, hidden)
        if any(len(c) != len(old) for c, old in zip(chosen.tokens, self.rows.columns, strict=True)):
            hidden = self._shorten(chosen.tokens, hidden, positions_policy)
            if self.aside is None:
                self._refuse_dead()
        self.asked |= stage.method.asks
        self.signals.heard = Heard()  # a later stage must hear its own
        self.records.append(StageRecord(before, self.visual_counts(), watch))
        self.kept.append(self._kept_columns())
        self.history.append((stage.at, self.rows))
        if log.isEnabledFor(logging.DEBUG):
            log.debug(self._told(stage))
        return hidden

    def _told(self, stage: Stage) -> str:
        """What the last stage did, for people who debug. Waits for the device."""
        record, rows = self.records[-1], self.rows
        places = [rows.positions[:, row, rows.valid[row]] for row in range(self.batch)]
        told = [
            f"row {row} {before} -> {after}, padding {rows.length - rows.counts[row]}, {_range(places[row])}"
            for row, (before, after) in enumerate(zip(record.before, record.after, strict=True))
        ]
        where = "before the LLM" if stage.at == 0 else f"before layer {stage.at}"
        return f"stage {len(self.records) - 1} {where}: {'; '.join(told)} ({stage.method.name})"

    def _refuse_dead(self) -> None:
        """Raise `Unsupported` where something is read from a token that is gone."""
        if self.reads_padding:
            raise Unsupported(
                "This batch is padded on the right, so its next tokens are read from padding, which pruning takes "
                "away. Pad on the left: processor.tokenizer.padding_side = 'left'."
            )
        for row, column in self.read:
            there = (self.rows.prompt_columns()[row] == column) & self.rows.valid[row]
            if not bool(there.any()):
                raise Unsupported(
                    f"What follows column {column} of row {row} is predicted from that image token, which "
                    f"{self.method} drops. Put text between an image and what is predicted after it (the question, a "
                    "line break), and set labels of images and of the token after them to -100."
                )

    def _merge(self, merges: list[Merge], hidden: Tensor) -> Tensor:
        """Hidden states in which survivors are the mixtures that a method asked for, features of DeepStack likewise."""
        if not merges:
            return hidden
        hidden = hidden.clone()
        planes = {} if self.deepstack is None else {i: p.clone() for i, p in self.deepstack.planes.items()}
        for one in merges:
            weights = one.weights.to(hidden.device)
            if one.features is None:
                mixed, place = weighted_sums(weights, hidden[one.row, one.sources]), one.kept
            else:
                mixtures = ((weights != 0).sum(-1) != 1) | (weights.sum(-1) != 1)
                mixed, place = self.project(weights[mixtures] @ one.features), one.kept[mixtures]
            hidden[one.row, place] = mixed.to(hidden.dtype)
            for plane in planes.values():
                order = self.deepstack.order[one.row, self.rows.prompt_columns()[one.row]].to(plane.device)
                mixed = weighted_sums(weights.to(plane.device), plane[order[one.sources]])
                plane[order[one.kept]] = mixed.to(plane.dtype)
        if planes:
            self.deepstack = DeepStack(planes, self.deepstack.order)
        return hidden

    def _recall(self, hidden: Tensor) -> Tensor:
        """Bring back the tokens that an earlier stage set aside, as they were when they left."""
        then, waiting, own_shift = self.aside.rows, self.aside.hidden, self.past_shift
        place = torch.full((self.batch, self.length), -1, device=hidden.device)
        own = torch.arange(then.length, device=hidden.device).expand(self.batch, -1)
        place = place.scatter(1, then.prompt_columns(), own)
        target = place.gather(1, self.rows.prompt_columns())
        rows, columns = (self.rows.valid & (target >= 0)).nonzero(as_tuple=True)
        waiting = waiting.clone()
        waiting[rows, target[rows, columns]] = hidden[rows, columns]
        # The text model may have computed cos and sin for the shorter rows alone.
        self.rows = replace(then, ropes={}, renumbered=True)
        self.moved, self.past_shift = self.aside.moved, self.aside.past_shift
        self._shift_to(own_shift)
        self.aside = None
        return waiting

    def _shorten(self, chosen: list[Tensor], hidden: Tensor, policy: str) -> Tensor:
        old = self.rows
        keep, counts = old.valid.clone(), list(old.counts)
        columns = [c[own] for c, own in zip(old.columns, chosen, strict=True)]
        tokens = [t[own] for t, own in zip(old.tokens, chosen, strict=True)]
        ends, end_ids = [], []
        for i, span in enumerate(self.spans):
            alive = self._alive_ends(i, tokens[i])
            ends.append(old.ends[i] if alive is None else old.ends[i][alive])
            end_ids.append(old.end_ids[i] if alive is None else old.end_ids[i][alive])
            for before, after in ((old.columns[i], columns[i]), (old.ends[i], ends[i])):
                keep[span.row, before] = False
                keep[span.row, after] = True
                counts[span.row] -= len(before) - len(after)
        width = max(counts)
        positions, ropes = old.positions, old.ropes
        if policy == "compact":
            positions, moved = self._renumber(keep)
            self.moved = moved if self.moved is None else self.moved + moved
            ropes = {}
        # Survivors to the right in their order; rows with fewer get removed tokens on the left, marked as padding.
        numbers = [x for x in (old.index, old.native) if x is not None]
        turns = [x for pair in ropes.values() for x in pair]
        take, (hidden, valid, *closed) = closed_up(keep, width, [hidden, keep, *positions, *numbers, *turns])
        closed = iter(closed)
        positions = torch.stack([next(closed) for _ in positions])
        index = take if old.index is None else next(closed)
        native = take if old.native is None else next(closed)
        place = keep.long().cumsum(1)
        place = place - place[:, -1:] + width - 1
        self.rows = Rows(
            index=index,
            valid=valid,
            positions=positions,
            counts=counts,
            columns=[place[span.row, after] for span, after in zip(self.spans, columns, strict=True)],
            tokens=tokens,
            ends=[place[span.row, after] for span, after in zip(self.spans, ends, strict=True)],
            end_ids=end_ids,
            native=native,
            renumbered=old.renumbered or policy == "compact",
            ropes={kind: (next(closed), next(closed)) for kind in ropes},
        )
        return hidden

    def _alive_ends(self, i: int, tokens: Tensor) -> Tensor | None:
        """bool [m]: the separators of span i that still close something, once only `tokens` are left of it; None
        without any."""
        ids = self.rows.end_ids[i]
        if not len(ids):
            return None
        limits = handed([s[1:] for s in self.spans[i].separators], ids.device)[ids]
        first, last = limits[:, :1], limits[:, 1:]
        return ((tokens >= first) & (tokens < last)).any(-1)

    def _renumber(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        positions, rank = self.rows.positions.clone(), self.rows.valid.long().cumsum(1)
        moved = positions.new_zeros(self.batch)
        for row in range(self.batch):
            stretches: list[Tensor] = []
            for span, columns, ends in zip(self.spans, self.rows.columns, self.rows.ends, strict=True):
                if span.row == row:
                    own = torch.cat([columns, ends]).sort().values
                    stretches += runs(own, rank[row, own])  # hidden columns in between do not part a span
            if stretches:
                stretches.sort(key=lambda s: int(s[0]))
                positions[:, row], moved[row] = compact(self.rows.positions[:, row], keep[row], stretches)
        return positions, moved

    def _kept_columns(self) -> list[Tensor]:
        """For each batch row the ascending prompt columns of the visual tokens still there."""
        found: list[list[Tensor]] = [[] for _ in range(self.batch)]
        for span, columns in zip(self.spans, self.rows.columns, strict=True):
            found[span.row].append(columns if self.rows.index is None else self.rows.index[span.row, columns])
        empty = self.rows.valid.new_empty(0, dtype=torch.long)
        return [torch.cat(parts).sort().values if parts else empty for parts in found]

    # What a layer gets.

    def rope(self, i: int, hidden: Tensor, given: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """cos and sin [B, K, e] of the current rows: what the text model computed (`given`), where it knew the
        positions."""
        rows, kind = self.rows, self.kinds[i].type
        if kind not in rows.ropes:
            if rows.renumbered or given is None:
                positions = rows.positions
                if len(positions) == 1:  # M-RoPE models take one axis of ids for all three
                    three = hasattr(self.model.rotary_emb, "mrope_section")
                    positions = positions.expand(3, -1, -1) if three else positions[0]
                own = (kind,) if "layer_type" in inspect.signature(self.model.rotary_emb.forward).parameters else ()
                rows.ropes[kind] = self.model.rotary_emb(hidden, positions, *own)
            else:
                take = rows.native
                rows.ropes[kind] = given if take is None else tuple(gather_rows(r, take.to(r.device)) for r in given)
        return rows.ropes[kind]

    def _keys(self, i: int, layer: PrunedLayer | None) -> tuple[Tensor, Tensor, int]:
        """valid and slots [B, P + K] of a layer's keys, and how many at their start no later token can see."""
        rows, window = self.rows, self.kinds[i].window
        if window not in rows.keys:
            valid, slots = rows.valid, self.past + rows.prompt_columns()
            if layer is not None and layer.rows:
                held, places, _ = layer.seen()
                valid = torch.cat([held.to(valid.device), valid], dim=1)
                slots = torch.cat([places.to(slots.device), slots], dim=1)
            forget, last = 0, self.past + self.length
            if layer is not None and window is not None and last >= window:
                gone = (slots <= last - window) | ~valid
                forget = int(gone.long().cumprod(1).sum(1).min())
            rows.keys[window] = valid, slots, forget
        return rows.keys[window]

    def mask(self, i: int, hidden: Tensor, layer: PrunedLayer | None) -> Any:
        """Attention mask of the current rows over a layer's cached and new keys, in the kernel's own format."""
        window = self.kinds[i].window
        if window not in self.rows.masks:
            valid, slots, _ = self._keys(i, layer)
            width = valid.shape[1] if layer is None else layer.width(self.rows.length)
            blocks = None if self.blocks is None else self.block_numbers(valid.shape[1])
            reached = window is not None and self.past + self.length > window
            padded = min(self.rows.counts) < self.rows.length or (layer is not None and layer.rows)
            self.rows.masks[window] = attention_mask(
                self.model,
                hidden,
                valid if padded else None,
                slots,
                width,
                window if reached else None,
                blocks,
                self.blocks_ignore_window,
            )
        return self.rows.masks[window]

    def block_numbers(self, keys: int) -> Tensor:
        """int64 [B, keys]: the block of each key, the current rows last; cached ones are in none."""
        own = self.blocks.gather(1, self.rows.prompt_columns())
        return pad(own, (keys - own.shape[1], 0), value=-1)

    def announce(self, i: int, layer: PrunedLayer) -> None:
        """Tell a cache layer what the rows that it is about to receive stand for."""
        shifts = [s for s in (self.past_shift, self.moved) if s is not None]
        valid, slots, forget = self._keys(i, layer)
        news = Incoming(
            length=self.length,
            tail=self.tail if self.rows.index is not None else self.length,
            valid=valid,
            slots=slots,
            shift=sum(shifts) if shifts else None,
            forget=forget,
            asked=self.asked,
            visual=self.visual_rows() if self.spans and layer.retains else None,
        )
        self.past_rows[i] = layer.rows
        layer.expect(news, self.rows.length)

    def add_plane(self, layer: int, hidden: Tensor) -> Tensor:
        """Add the features that follow decoder layer `layer` to the visual tokens that are left."""
        plane = self.deepstack.planes[layer].to(hidden.device, hidden.dtype)
        order = self.deepstack.order.gather(1, self.rows.prompt_columns())
        return hidden + plane[order.clamp(min=0)] * (order >= 0)[..., None]

    def restore(self, hidden: Tensor, rows: Rows) -> Tensor:
        """Spread rows [B, K, d] over the prompt's length [B, L, d]; removed tokens get zeros."""
        if rows.index is None:
            return hidden
        index, valid = rows.index.to(hidden.device), rows.valid.to(hidden.device)
        full = hidden.new_zeros(hidden.shape[0], self.length, hidden.shape[-1])
        return full.scatter(1, index[..., None].expand_as(hidden), hidden.masked_fill(~valid[..., None], 0))


def _range(positions: Tensor) -> str:
    """The smallest and largest of position ids, of whatever shape."""
    return f"positions {int(positions.min())}..{int(positions.max())}" if positions.numel() else "no positions"


def closed_up(keep: Tensor, width: int, tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Rows [B, L, ...] closed up over what `keep` drops, each tensor on its own device (a model may be spread over
    several), and the places int64 [B, width] that they come from."""
    found: dict[int, Tensor] = {}
    places = {}
    for device in dict.fromkeys([keep.device, *(x.device for x in tensors)]):
        mine = [i for i, x in enumerate(tensors) if x.device == device]
        places[device], *closed = compact_rows(keep.to(device), width, [tensors[i] for i in mine])
        found |= zip(mine, closed, strict=True)
    return places[keep.device], [found[i] for i in range(len(tensors))]
