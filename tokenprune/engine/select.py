"""Runs a stage's method: what is selected from together, and what comes of it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenprune.engine.signals import Unit, stacked, text_after
from tokenprune.core import trace
from tokenprune.core.selection import Selection
from tokenprune.errors import BadInput
from tokenprune.methods.base import Method, View
from tokenprune.methods.stage import Stage

if TYPE_CHECKING:
    from tokenprune.engine.forward import Forward


@dataclass
class Merge:
    """Rows of batch row `row` that become mixtures: row `kept[i]` = weights[i] @ rows `sources`, or, with `features`
    [n, c], the projection of weights[i] @ features."""

    row: int
    sources: Tensor
    kept: Tensor
    weights: Tensor
    features: Tensor | None = None


@dataclass
class Chosen:
    """For each span which of its remaining tokens stay (int64, ascending), and what is merged on the way."""

    tokens: list[Tensor]
    merges: list[Merge]


@torch.no_grad()
def choose(stage: Stage, forward: Forward, hidden: Tensor) -> Chosen:
    """Run the method on every unit. Units of one shape are selected from together."""
    groups: dict[tuple, list[Unit]] = defaultdict(list)
    pieces = forward.signals.given.get("clip_text", [])
    passed = [forward.rows_before(i) for i in range(stage.at)]
    for unit in _units(stage, forward):
        picture = (unit.row, forward.spans[unit.spans[0]].item) if stage.method.together else None
        grids = tuple(forward.spans[i].grid for i in unit.spans)
        text = None if unit.after is None else len(unit.after)
        asked = tuple(map(len, pieces[unit.row : unit.row + 1]))
        before = tuple(sum(len(rows.columns[i]) for i in unit.spans) for rows in passed)
        groups[len(unit.columns), grids, before, text, asked, picture].append(unit)
    chosen = Chosen([torch.arange(len(c), device=c.device) for c in forward.rows.columns], [])
    for (count, grids, before, *_), units in groups.items():
        signals = {need.signal: stacked(need, forward, stage.at, units, hidden) for need in stage.method.needs}
        found = {name: value for name, value in signals.items() if value is not None}
        tokens = torch.stack([u.tokens for u in units])
        view = View(count, len(units), grids, found, tokens, units[0].total, len(forward.kinds), before)
        with trace.listening() as notes:
            selection = checked(stage.method.select(view), stage.method, view)
        for number, unit in enumerate(units):
            features = found["vision_features"][number] if stage.method.merges_in == "encoder" else None
            index, weights = selection.span(number)
            index = index.to(unit.columns.device, non_blocking=True)
            if weights is not None and len(index):
                kept = unit.columns[index]
                chosen.merges.append(Merge(unit.row, unit.columns, kept, weights.float(), features))
            _take(chosen, forward, unit, index)
            if forward.rankings is not None:
                columns = unit.columns if forward.rows.index is None else forward.rows.index[unit.row, unit.columns]
                seen, member = hidden[unit.row, unit.columns], (number, len(units))
                forward.rankings.append(
                    trace.ranking(stage.at, stage.method.name, unit.row, columns, index, seen, notes, member)
                )
    return chosen


def _units(stage: Stage, forward: Forward) -> list[Unit]:
    """Spans with tokens left; with scope=item, all spans of a picture as one, its base image first."""
    reads_text = any(need.signal.startswith("text_") or need.signal == "rope_weight" for need in stage.method.needs)
    members: dict[tuple, list[int]] = defaultdict(list)
    for i, span in enumerate(forward.spans):
        key = (span.row, span.media, span.item) if stage.scope == "item" else (i,)
        members[key].append(i)
    units = []
    for spans in members.values():
        spans.sort(key=lambda i: forward.spans[i].part != "base")
        columns = torch.cat([forward.rows.columns[i] for i in spans])
        if not len(columns):
            continue
        tokens, total = [], 0
        for i in spans:
            tokens.append(forward.rows.tokens[i] + total)
            total += forward.spans[i].count
        row = forward.spans[spans[0]].row
        after = text_after(forward, row, spans) if reads_text else None
        units.append(Unit(spans, row, columns, torch.cat(tokens), total, after))
    return units


def _take(chosen: Chosen, forward: Forward, unit: Unit, index: Tensor) -> None:
    """Spread the choice of a unit over its spans."""
    start = 0
    for i in unit.spans:
        length = len(forward.rows.columns[i])
        if length < len(unit.columns):
            chosen.tokens[i] = index[(index >= start) & (index < start + length)] - start
        else:
            chosen.tokens[i] = index
        start += length


def checked(selection: Selection, method: Method, view: View) -> Selection:
    """Refuse a selection that breaks the contract; order and range are looked at where that needs no host sync."""
    index, valid = selection.index, selection.valid
    good = index.ndim == 2 and index.shape[0] == view.spans and index.dtype == torch.long
    good = good and (valid is None or (valid.shape == index.shape and valid.dtype == torch.bool))
    if good and index.device.type == "cpu" and index.numel():
        real = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
        rising = (index.diff(dim=-1) > 0) | ~real[:, 1:]
        inside = ((index >= 0) & (index < view.count)) | ~real
        good = bool(rising.all() and inside.all() and (real[:, :-1] | ~real[:, 1:]).all())
    if not good:
        raise BadInput(
            f"The method {method.name!r} returned a wrong index (shape {list(index.shape)}, {index.dtype}). It must be "
            f"int64 [{view.spans}, k], ascending, unique and below {view.count}."
        )
    weights = selection.weights
    if weights is not None and weights.shape != (*index.shape, view.count):
        raise BadInput(
            f"The method {method.name!r} returned weights of shape {list(weights.shape)}. They must be "
            f"[{view.spans}, {index.shape[1]}, {view.count}]."
        )
    return selection
