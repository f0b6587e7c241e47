"""What stages ranked by, for pictures and explanations.

Selection primitives call `note_scores` and `note_order`; the engine gathers what a stage noted where a run is traced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Ranking:
    """One selection: n visual tokens of a span (or of a picture, with scope=item) at a stage.

    at: the stage's layer. row: of the batch. columns: int64 [n], where the tokens stand in the prompt. kept: bool [n].
    scores: float32 [n], the first quantity by which the method ranked all of them; None where it ranked by none.
    order: int64 [k], places in `columns` in the order of picking, for greedy methods. nearest: int64 [n], the place of
    the kept token whose hidden state is most alike (a kept token's own), None where none was kept; likeness: float32
    [n], the cosine.
    """

    at: int
    method: str
    row: int
    columns: Tensor
    kept: Tensor
    scores: Tensor | None
    order: Tensor | None
    nearest: Tensor | None
    likeness: Tensor | None


@dataclass
class Notes:
    """What one call of select() ranked by."""

    scores: list[Tensor] = field(default_factory=list)
    order: list[Tensor] = field(default_factory=list)


_notes: ContextVar[Notes | None] = ContextVar("notes", default=None)


@contextmanager
def listening() -> Iterator[Notes]:
    """Gathers the notes of one call of select()."""
    notes = Notes()
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def note_scores(scores: Tensor) -> None:
    """Tokens are being ranked by `scores` [..., n]; whole numbers are marks or ranks, not what a method measures."""
    notes = _notes.get()
    if notes is not None and scores.is_floating_point():
        notes.scores.append(scores.detach())


def note_order(picks: Tensor) -> None:
    """Tokens were picked one after the other: int64 [S, k]."""
    notes = _notes.get()
    if notes is not None:
        notes.order.append(picks)


def ranking(
    at: int, method: str, row: int, columns: Tensor, index: Tensor, hidden: Tensor, notes: Notes, unit: tuple[int, int]
) -> Ranking:
    """What became of one unit, number `unit[0]` of the `unit[1]` that were selected from together.

    columns: int64 [n]; index: int64 [k], places that stay; hidden: [n, d].
    """
    number, spans = unit
    count = len(columns)
    kept = torch.zeros(count, dtype=torch.bool, device=columns.device)
    kept[index] = True
    fits = [s.float().reshape(spans, count)[number] for s in notes.scores if s.numel() == spans * count]
    fits += [s.float().reshape(count) for s in notes.scores if spans > 1 and s.numel() == count]
    orders = [picks[number] for picks in notes.order if len(picks) == spans]
    nearest = likeness = None
    if len(index):
        x = functional.normalize(hidden.float(), dim=-1)
        alike = x @ x[index].mT
        alike[index, torch.arange(len(index), device=x.device)] = 2.0  # a kept token is its own nearest
        best = alike.max(-1)
        nearest, likeness = index[best.indices], best.values.clamp(max=1.0)
    scores = fits[0].cpu() if fits else None
    order = orders[0].cpu() if orders else None
    to_host = [None if x is None else x.cpu() for x in (nearest, likeness)]
    return Ranking(at, method, row, columns.cpu(), kept.cpu(), scores, order, *to_host)
