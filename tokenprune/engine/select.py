"""Runs a stage's method: what is selected from together, and what comes of it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.core import trace
from tokenprune.core.selection import Selection
from tokenprune.engine.token_state import TokenState
from tokenprune.errors import BadInput
from tokenprune.methods.base import Method, View
from tokenprune.methods.stage import Stage
from tokenprune.signals.checks import common_sizes
from tokenprune.signals.reading import Reading, Selectable
from tokenprune.signals.table import SIGNALS


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
class Choice:
    """For each span which of its remaining tokens stay (int64, ascending), and what is merged on the way."""

    tokens: list[Tensor]
    merges: list[Merge]


@torch.no_grad()
def select(
    stage: Stage,
    state: TokenState,
    reading: Reading,
    passed: list[TokenState],
    layers: int,
    rankings: list[trace.Ranking] | None,
) -> Choice:
    """Run the method on everything there is to select from; what is of one shape is selected from together.

    passed: the state that each layer before this stage had. layers: of the model. rankings: gets what was ranked.
    """
    groups: dict[tuple, list[Selectable]] = defaultdict(list)
    own = (need.signal for need in stage.method.needs if SIGNALS[need.signal].given)
    given = ((name, value) for name in own for value in reading.given.get(name, []))
    common_sizes(given, stacked=False, apart=("n", "t", "q"))
    pieces = reading.given.get("clip_text", [])
    for unit in _selectables(stage, state):
        picture = (unit.row, state.spans[unit.spans[0]].item) if stage.method.together else None
        grids = tuple(state.spans[i].grid for i in unit.spans)
        text = len(unit.after)
        question = tuple(map(len, pieces[unit.row : unit.row + 1]))
        before = tuple(sum(len(one.token_rows[i]) for i in unit.spans) for one in passed)
        groups[len(unit.rows), grids, before, text, question, picture].append(unit)
    choice = Choice([torch.arange(len(rows), device=rows.device) for rows in state.token_rows], [])
    for (count, grids, before, *_), units in groups.items():
        signals = {need.signal: SIGNALS[need.signal].provide(reading, units, need) for need in stage.method.needs}
        found = {name: value for name, value in signals.items() if value is not None}
        tokens = torch.stack([u.tokens for u in units])
        view = View(count, len(units), grids, found, tokens, units[0].total, layers, before)
        with trace.listening() as notes:
            selection = check_selection(stage.method.select(view), stage.method, view)
        for number, unit in enumerate(units):
            features = found["vision_features"][number] if stage.method.merges_in == "encoder" else None
            index, weights = selection.span(number)
            index = index.to(unit.rows.device, non_blocking=True)
            if weights is not None and len(index):
                kept = unit.rows[index]
                choice.merges.append(Merge(unit.row, unit.rows, kept, weights.float(), features))
            _spread(choice, state, unit, index)
            if rankings is not None:
                columns, seen = state.column[unit.row, unit.rows], reading.hidden[unit.row, unit.rows]
                member = number, len(units)
                rankings.append(
                    trace.ranking(stage.at, stage.method.name, unit.row, columns, index, seen, notes, member)
                )
    return choice


def _selectables(stage: Stage, state: TokenState) -> list[Selectable]:
    """Spans with tokens left; with scope=item, all spans of a picture as one, its base image first."""
    reads_text = any(SIGNALS[need.signal].reads_text for need in stage.method.needs)
    members: dict[tuple, list[int]] = defaultdict(list)
    for i, span in enumerate(state.spans):
        key = (span.row, span.media, span.item) if stage.scope == "item" else (i,)
        members[key].append(i)
    units = []
    for spans in members.values():
        spans.sort(key=lambda i: state.spans[i].part != "base")
        rows = torch.cat([state.token_rows[i] for i in spans])
        if not len(rows):
            continue
        tokens, total = [], 0
        for i in spans:
            tokens.append(state.token_ids[i] + total)
            total += state.spans[i].count
        row = state.spans[spans[0]].row
        after = _text_after(state, row, spans) if reads_text else rows[:0]
        units.append(Selectable(spans, row, rows, torch.cat(tokens), total, after))
    return units


def _text_after(state: TokenState, row: int, spans: list[int]) -> Tensor:
    after = state.text_after(row, max(state.spans[i].columns[-1] for i in spans))
    if not len(after):
        raise BadInput("A text-guided method needs text after the image, and this prompt ends with it.")
    return after


def _spread(choice: Choice, state: TokenState, unit: Selectable, index: Tensor) -> None:
    """Spread what was selected of a unit over its spans."""
    start = 0
    for i in unit.spans:
        length = len(state.token_rows[i])
        if length < len(unit.rows):
            choice.tokens[i] = index[(index >= start) & (index < start + length)] - start
        else:
            choice.tokens[i] = index
        start += length


def check_selection(selection: Selection, method: Method, view: View) -> Selection:
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
