"""One forward pass of a pruned model: which prompt token each row stands for, and how a stage shortens the rows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import create_causal_mask

from tokenprune.attach.cache import Incoming, PrunedLayer
from tokenprune.core.positions import compact
from tokenprune.core.selection import Selection
from tokenprune.errors import BadInput, Unsupported
from tokenprune.families.base import Placeholders, Span
from tokenprune.methods.base import Method, View
from tokenprune.methods.stage import Stage


class _Clock:
    """Stands in for the cache where masks are made: counts physical rows only, so that mask and keys line up."""

    is_compileable = False

    def __init__(self, past: int) -> None:
        self.past = past

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.past

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.past

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.past + query_length, 0


@dataclass
class Rows:
    """What the rows of the sequence are between two stages.

    index: int64 [B, K], the prompt column of each row of this forward; None while nothing has been removed.
    valid: bool [B, K], False for padding. positions: int64 [axes, B, K]. counts: valid rows of each batch row.
    columns: for each span the int64 rows it still occupies, ascending. native: the text model itself computes cos and
    sin for these positions. rope: cos and sin [B, K, e], once known. mask: (made,) once made.
    """

    index: Tensor | None
    valid: Tensor
    positions: Tensor
    counts: list[int]
    columns: list[Tensor]
    native: bool = True
    rope: tuple[Tensor, Tensor] | None = None
    mask: tuple[Tensor | None] | None = None

    @property
    def length(self) -> int:
        return self.valid.shape[1]


@dataclass
class StageRecord:
    """What a stage did: visual tokens before and after for each batch row, and the time its selection took."""

    before: list[int]
    after: list[int]
    seconds: float


@dataclass
class Forward:
    """State of one pass. `spans` is empty for decoding steps and text-only prompts."""

    model: PreTrainedModel  # the text model
    length: int
    rows: Rows
    spans: list[Span]
    tail: int  # tokens after the last span: rows that stay, one for one
    logits_to_keep: int
    past_valid: Tensor | None = None  # bool [B, P]: which cached tokens of an unpruned layer are not padding
    past_shift: Tensor | None = None  # int64 [B]: by how much earlier prompts lowered the positions of this group
    moved: Tensor | None = None  # int64 [B]: by how much this prompt lowers them on top
    saliency: dict[str, list[Tensor]] = field(default_factory=dict)
    attention: Tensor | None = None  # float32 [B, H, keys], left by the tap of the layer before a stage
    records: list[StageRecord] = field(default_factory=list)
    kept: list[list[Tensor]] = field(default_factory=list)
    history: list[tuple[int, Rows]] = field(default_factory=list)  # (first layer, rows) from each stage on

    def __post_init__(self) -> None:
        self.history.append((0, self.rows))

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

    def query_rows(self) -> Tensor:
        """int64 [B]: the row of the last prompt token (before drafted tokens, and before right padding)."""
        until = self.length - max(self.logits_to_keep, 1) + 1
        index = self.rows.index
        prompt = torch.arange(self.rows.length, device=self.rows.valid.device) if index is None else index
        usable = self.rows.valid & (prompt < until)
        place = torch.arange(1, self.rows.length + 1, device=usable.device)
        return (usable * place).argmax(-1)

    def visible(self, layer: DynamicLayer | None, keys: int) -> Tensor:
        """bool [B, keys]: the keys of a cache layer (its new rows included) that the query row may see."""
        past = keys - self.rows.length
        if isinstance(layer, PrunedLayer):
            before = layer.valid[:, :past]
        elif self.past_valid is not None:
            before = self.past_valid
        else:
            before = self.rows.valid.new_ones(self.batch, past)
        place = torch.arange(self.rows.length, device=before.device)
        return torch.cat([before, self.rows.valid & (place <= self.query_rows()[:, None])], dim=1)

    def enter_group(self, layer: PrunedLayer | None) -> None:
        """Start a group of layers that share their rows: its cache may have another length and another shift."""
        shift = None if layer is None else layer.shift
        rows = replace(self.rows, mask=None)
        if shift is not None or self.past_shift is not None:
            change = (0 if shift is None else shift) - (0 if self.past_shift is None else self.past_shift)
            rows = replace(rows, positions=rows.positions - change[:, None], native=False, rope=None)
        self.rows, self.past_shift = rows, shift

    def run_stage(self, stage: Stage, hidden: Tensor, positions_policy: str) -> Tensor:
        """Select, shorten the rows and return the shortened hidden states [B, K', d]."""
        before = self.visual_counts()
        began = time.perf_counter()
        chosen = self._select(stage, hidden)
        seconds = time.perf_counter() - began
        if any(len(c) != len(old) for c, old in zip(chosen, self.rows.columns, strict=True)):
            hidden = self._compact_rows(chosen, hidden, positions_policy)
        self.records.append(StageRecord(before, self.visual_counts(), seconds))
        self.kept.append(self._kept_columns())
        self.history.append((stage.at, self.rows))
        return hidden

    @torch.no_grad()
    def _select(self, stage: Stage, hidden: Tensor) -> list[Tensor]:
        """For each span the rows that stay. Spans of equal length and grid are selected together."""
        groups: dict[tuple, list[int]] = defaultdict(list)
        for i, (span, columns) in enumerate(zip(self.spans, self.rows.columns, strict=True)):
            if len(columns):
                groups[len(columns), span.grid].append(i)
        chosen = list(self.rows.columns)
        for (count, grid), members in groups.items():
            columns = torch.stack([self.rows.columns[i] for i in members])
            batch_rows = torch.tensor([self.spans[i].row for i in members], device=columns.device)
            signals = self._signals(stage, hidden, members, columns, batch_rows)
            view = View(count, len(members), grid, signals)
            selection = checked(stage.method.select(view), stage.method, view)
            kept = columns.gather(1, selection.index.to(columns.device))
            for i, own in zip(members, kept, strict=True):
                chosen[i] = own
        return chosen

    def _signals(
        self, stage: Stage, hidden: Tensor, members: list[int], columns: Tensor, batch_rows: Tensor
    ) -> dict[str, Tensor]:
        signals = {}
        for need in stage.method.needs:
            if need.signal == "features":
                signals["features"] = hidden[batch_rows[:, None], columns]
            elif need.signal == "attention_row" and self.attention is not None:
                past = self.attention.shape[-1] - self.rows.length
                per_span = self.attention[batch_rows]
                where = (columns + past)[:, None].expand(-1, per_span.shape[1], -1)
                signals["attention_row"] = per_span.gather(2, where)
            elif need.signal == "saliency" and need.variant in self.saliency:
                origin = columns if self.rows.index is None else self.rows.index[batch_rows[:, None], columns]
                starts = torch.tensor([self.spans[i].start for i in members], device=origin.device)
                whole = torch.stack([self.saliency[need.variant][i] for i in members]).to(origin.device)
                signals["saliency"] = whole.gather(1, origin - starts[:, None])
        return signals

    def _compact_rows(self, chosen: list[Tensor], hidden: Tensor, policy: str) -> Tensor:
        old = self.rows
        keep = old.valid.clone()
        for span, before, after in zip(self.spans, old.columns, chosen, strict=True):
            keep[span.row, before] = False
            keep[span.row, after] = True
        counts = list(old.counts)
        for span, before, after in zip(self.spans, old.columns, chosen, strict=True):
            counts[span.row] -= len(before) - len(after)
        width = max(counts)
        # Survivors to the right in their order; rows with fewer get removed tokens on the left, marked as padding.
        take = keep.long().sort(dim=1, stable=True).indices[:, -width:]
        positions, compacted = old.positions, policy == "compact"
        if compacted:
            positions, moved = self._renumber(keep)
            self.moved = moved if self.moved is None else self.moved + moved
        place = keep.long().cumsum(1) - 1 + torch.tensor([[width - c] for c in counts], device=keep.device)
        self.rows = Rows(
            index=take if old.index is None else old.index.gather(1, take),
            valid=keep.gather(1, take),
            positions=positions.gather(2, take.expand(len(positions), -1, -1)),
            counts=counts,
            columns=[place[span.row, after] for span, after in zip(self.spans, chosen, strict=True)],
            native=False,
            rope=None if old.rope is None or compacted else tuple(gather_rows(r, take) for r in old.rope),
        )
        return gather_rows(hidden, take)

    def _renumber(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        positions = self.rows.positions.clone()
        moved = positions.new_zeros(self.batch)
        for row in range(self.batch):
            own = [c for span, c in zip(self.spans, self.rows.columns, strict=True) if span.row == row and len(c)]
            if own:
                positions[:, row], moved[row] = compact(self.rows.positions[:, row], keep[row], own)
        return positions, moved

    def _kept_columns(self) -> list[Tensor]:
        """For each batch row the ascending prompt columns of the visual tokens still there."""
        found: list[list[Tensor]] = [[] for _ in range(self.batch)]
        for span, columns in zip(self.spans, self.rows.columns, strict=True):
            found[span.row].append(columns if self.rows.index is None else self.rows.index[span.row, columns])
        empty = self.rows.valid.new_empty(0, dtype=torch.long)
        return [torch.cat(parts) if parts else empty for parts in found]

    def rope(self, hidden: Tensor, given: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """cos and sin [B, K, e] of the current rows: what the text model computed, where it knew the positions."""
        rows = self.rows
        if rows.rope is None:
            positions = rows.positions[0] if len(rows.positions) == 1 else rows.positions
            rows.rope = given if rows.native else self.model.rotary_emb(hidden, positions)
        return rows.rope

    def mask(self, hidden: Tensor, layer: PrunedLayer | None) -> Tensor | None:
        """Attention mask of the current rows over a layer's cached and new keys, in the kernel's own format."""
        if self.rows.mask is None:
            past = 0 if layer is None else layer.rows
            valid = self.rows.valid if not past else torch.cat([layer.valid, self.rows.valid], dim=1)
            self.rows.mask = (create_causal_mask(self.model.config, hidden, valid, _Clock(past), layer_idx=0),)
        return self.rows.mask[0]

    def announce(self, layer: PrunedLayer) -> None:
        """Tell a cache layer what the rows that it is about to receive stand for."""
        shifts = [s for s in (self.past_shift, self.moved) if s is not None]
        tail = self.tail if self.rows.index is not None else self.length
        layer.incoming = Incoming(self.length, tail, self.rows.valid, sum(shifts) if shifts else None)

    def restore(self, hidden: Tensor, rows: Rows) -> Tensor:
        """Spread rows [B, K, d] over the prompt's length [B, L, d]; removed tokens get zeros."""
        if rows.index is None:
            return hidden
        full = hidden.new_zeros(hidden.shape[0], self.length, hidden.shape[-1])
        return full.scatter(1, rows.index[..., None].expand_as(hidden), hidden.masked_fill(~rows.valid[..., None], 0))


def gather_rows(x: Tensor, take: Tensor) -> Tensor:
    """Rows `take` [B, K] of x [B or 1, L, d]."""
    x = x.expand(take.shape[0], -1, -1)
    return x.gather(1, take[..., None].expand(-1, -1, x.shape[-1]))


def checked(selection: Selection, method: Method, view: View) -> Selection:
    """Refuse a selection that breaks the contract; order and range are looked at where that needs no host sync."""
    index = selection.index
    good = index.ndim == 2 and index.shape[0] == view.spans and index.dtype == torch.long and index.shape[1] > 0
    if good and index.device.type == "cpu":
        good = bool((index.diff(dim=-1) > 0).all() and index[:, 0].min() >= 0 and index[:, -1].max() < view.count)
    if not good:
        raise BadInput(
            f"The method {method.name!r} returned a wrong index (shape {list(index.shape)}, {index.dtype}). It must be "
            f"int64 [{view.spans}, k], ascending, unique and below {view.count}."
        )
    if selection.weights is not None:
        raise Unsupported(f"{method.name} merges tokens, which cannot run inside a model yet. Use tokenprune.select.")
    return selection


def placeholder_runs(input_ids: Tensor, tokens: Iterable[int]) -> list[Placeholders]:
    """Every run of one of these tokens in `input_ids` [B, L], in reading order."""
    found = []
    for token in tokens:
        edges = torch.nn.functional.pad((input_ids == token).int(), (1, 1)).diff(dim=1)
        starts, ends = (edges == 1).nonzero().tolist(), (edges == -1).nonzero().tolist()
        found += [Placeholders(row, s, e - s, token) for (row, s), (_, e) in zip(starts, ends, strict=True)]
    return sorted(found, key=lambda run: (run.row, run.start))
