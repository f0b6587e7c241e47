"""One question, unpruned and pruned, with everything that is to be shown of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tokenprune.api import prune
from tokenprune.chat import Chat
from tokenprune.core.trace import Ranking
from tokenprune.engine.report import Report
from tokenprune.engine.run import Run
from tokenprune.explain.overlay import FRAME_SIDE, SHORT_SIDE, fit, frames_of, seen_picture, shown_span
from tokenprune.explain.stages import StageView, stage_views
from tokenprune.families.base import Span
from tokenprune.media.clip import Clip
from tokenprune.media.pictures import picture
from tokenprune.plan import Plan, Planned


@dataclass(frozen=True)
class Explained:
    """Both answers, the report, the span that is shown with its stages, and a picture for each of its time steps."""

    question: str
    dense: str
    pruned: str
    seconds: tuple[float, float]
    report: Report
    span: Span
    stages: list[StageView]
    pictures: list[Image.Image]


def explain(
    chat: Chat,
    shown: Image.Image | str | Path | Clip,
    question: str,
    method: Planned,
    max_new_tokens: int = 40,
) -> Explained:
    """Ask twice, the second time pruned, and look at every stage.

    shown: a picture, open or a file, or a clip. method: as for `prune`. Raises what `prune` raises, before the
    first answer.
    """
    plan = Plan.of(method)
    plan.check(chat.model)
    shown = shown if isinstance(shown, Clip) else picture(shown)
    inputs = chat.inputs(shown, question)
    dense = chat.answer(inputs, max_new_tokens)
    with prune(chat.model, plan) as run:
        rankings = run.trace()
        pruned = chat.answer(inputs, max_new_tokens)
    return draw_steps(chat, shown, inputs, question, (dense, pruned), run, rankings)


def draw_steps(
    chat: Chat,
    shown: Image.Image | Clip,
    inputs: Any,
    question: str,
    answers: tuple[tuple[str, float], tuple[str, float]],
    run: Run,
    rankings: Sequence[Ranking],
) -> Explained:
    """The last prompt of a run, with the unpruned and the pruned answer and their seconds.

    inputs: of that prompt. rankings: of `run.trace()` before it.
    """
    span = shown_span(run)
    if isinstance(shown, Clip):
        pictures = [fit(frame, FRAME_SIDE) for frame in frames_of(shown.frames, span.grid[0])]
    else:
        pictures = [fit(seen_picture(shown, inputs["pixel_values"], chat.processor), SHORT_SIDE)]
    (dense, dense_seconds), (pruned, pruned_seconds) = answers
    return Explained(
        question=question,
        dense=dense,
        pruned=pruned,
        seconds=(dense_seconds, pruned_seconds),
        report=run.report(),
        span=span,
        stages=stage_views(run, rankings, span),
        pictures=pictures,
    )
