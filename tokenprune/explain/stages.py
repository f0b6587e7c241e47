"""What became of every visual token at every stage of the last prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenprune.core.trace import Ranking
from tokenprune.engine.run import Run
from tokenprune.explain.overlay import kept_tokens
from tokenprune.families.base import Span

GONE = -1


@dataclass(frozen=True)
class StageView:
    """One stage and the span that is shown; arrays have the span's shape [t, h, w].

    present: bool, there before the stage; kept: bool, there after it. scores: float64, what the method ranked by, NaN
    where there is none. ranks: int64, 1 is the first: by score, or by the order of picking of greedy methods; -1 where
    the method made no such order. nearest: int64, the number in the span of the kept token that is most alike,
    -1 where that is of another span or there is none; likeness: float64, its cosine. merged: int64, the number of
    the token that this one was folded into, -1 where it was not.
    """

    title: str
    present: np.ndarray
    kept: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray
    nearest: np.ndarray
    likeness: np.ndarray
    merged: np.ndarray

    @property
    def scored(self) -> bool:
        """Whether the method ranked tokens by a number."""
        return bool(np.isfinite(self.scores).any())


def stage_views(run: Run, rankings: Sequence[Ranking], span: Span) -> list[StageView]:
    """Every stage as this span saw it. rankings: of `run.trace()` before the prompt."""
    return [_view(run, i, rankings, span) for i in range(len(run.stages))]


def _view(run: Run, stage: int, rankings: Sequence[Ranking], span: Span) -> StageView:
    at = run.stages[stage].at
    token_of = np.full(max(span.columns) + 1, GONE)
    token_of[list(span.columns)] = np.arange(span.count)
    kept = kept_tokens(run, span, stage)
    before = kept_tokens(run, span, stage - 1) if stage else np.ones_like(kept)
    view = StageView(
        title=f"{run.stages[stage].method.name}, {run.stages[stage].place}",
        present=before,
        kept=kept,
        scores=np.full(span.grid, np.nan),
        ranks=np.full(span.grid, GONE),
        nearest=np.full(span.grid, GONE),
        likeness=np.full(span.grid, np.nan),
        merged=np.full(span.grid, GONE),
    )
    for ranking in rankings:
        if ranking.at == at and ranking.row == span.row:
            _fill(view, ranking, token_of)
    for row, sources, stayed, weights in run.merges[stage]:
        if row == span.row and len(stayed):
            share = weights.cpu()
            into, given = stayed.cpu()[share.argmax(0)].numpy(), (share > 0).any(0).numpy()
            _put(view.merged, sources.cpu().numpy()[given], _tokens_of(into[given], token_of), token_of)
    return view


def _fill(view: StageView, ranking: Ranking, token_of: np.ndarray) -> None:
    """Enter what a ranking says of tokens of this span."""
    columns = ranking.columns.numpy()
    if ranking.scores is not None:
        scores = ranking.scores.double().numpy()
        _put(view.scores, columns, scores, token_of)
        ranks = np.empty(len(columns), dtype=np.int64)
        ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(columns) + 1)
        _put(view.ranks, columns, ranks, token_of)
    elif ranking.order is not None:
        picked = columns[ranking.order.numpy()]
        _put(view.ranks, picked, np.arange(1, len(picked) + 1), token_of)
    if ranking.nearest is not None and ranking.likeness is not None:
        _put(view.nearest, columns, _tokens_of(columns[ranking.nearest.numpy()], token_of), token_of)
        _put(view.likeness, columns, ranking.likeness.double().numpy(), token_of)


def _tokens_of(columns: np.ndarray, token_of: np.ndarray) -> np.ndarray:
    """Numbers in the span of the tokens at prompt columns; -1 for those of other spans."""
    inside = columns < len(token_of)
    return np.where(inside, token_of[np.where(inside, columns, 0)], GONE)


def _put(array: np.ndarray, columns: np.ndarray, values: np.ndarray, token_of: np.ndarray) -> None:
    """array[token at column] = value, for the columns of this span."""
    flat = _tokens_of(columns, token_of)
    mine = flat != GONE
    array.reshape(-1)[flat[mine]] = values[mine]
