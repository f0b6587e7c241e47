"""What the demo does, without its looks: opens what was uploaded, asks, and draws what happened."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tokenprune import scenes
from tokenprune.api import prune
from tokenprune.chat import Chat
from tokenprune.errors import BadInput
from tokenprune.explain.answers import Explained, draw_steps
from tokenprune.explain.overlay import FRAME_SIDE, SHORT_SIDE, dim, fit, frames_of, heat_map, strip
from tokenprune.media.clip import Clip
from tokenprune.media.pictures import load_image
from tokenprune.media.sniff import kind_of
from tokenprune.plan import Plan

LONGEST_QUESTION = 2000


@dataclass
class Shown:
    """What is on the screen so far. opened: what is asked about, in words; seen: all that the model sees; stages,
    scores: pictures with captions; rows: the figures, text by text."""

    opened: str = ""
    dense: str = ""
    pruned: str = ""
    seen: Image.Image | None = None
    stages: list[tuple[Image.Image, str]] = field(default_factory=list)
    scores: list[tuple[Image.Image, str]] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


class Session:
    """One model (or the bundled ones) for everybody who has the page open; questions wait for each other."""

    def __init__(self, model: str | None = None, frames: int = 32, max_new_tokens: int = 64) -> None:
        """Loads `model`, or the first of the bundled ones; the others are loaded with what they are asked about."""
        self.model, self.frames, self.max_new_tokens = model, frames, max_new_tokens
        self._chats: dict[str, Chat] = {}
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self.chat("scenes")

    def chat(self, bundled: str) -> Chat:
        """The session's model, or the bundled one of a name."""
        name = self.model or bundled
        with self._loading:
            if name not in self._chats:
                self._chats[name] = Chat.load(name)
            return self._chats[name]

    def open(self, path: str | Path | None, reader: str | None = None) -> Image.Image | Clip:
        """The picture or the clip in a file, by its content, or `BadInput` that names the file without its folder.

        reader: of `load_video`.
        """
        if path is None:
            raise BadInput("Upload an image or a video first.")
        path = Path(path)
        try:
            if kind_of(path) == "image":
                return load_image(path)
            return self.chat("scenes-video").load_video(path, frames=self.frames, reader=reader)
        except BadInput as error:
            raise BadInput(str(error).replace(str(path), path.name)) from error

    def preview(self, path: str | Path | None, reader: str | None = None) -> tuple[Image.Image, str]:
        """What was opened, as one picture, and in words."""
        opened = self.open(path, reader)
        if isinstance(opened, Clip):
            return strip([fit(f, 96) for f in frames_of(opened.frames, 16)]), describe(opened)
        return fit(opened), describe(opened)

    def ask(self, path: str | Path | None, question: str, asked: Plan, reader: str | None = None) -> Iterator[Shown]:
        """Both answers as they grow, then everything about the pruned one."""
        if len(question) > LONGEST_QUESTION:
            raise BadInput(f"The question has {len(question)} characters; ask in at most {LONGEST_QUESTION}.")
        opened = self.open(path, reader)
        with self._lock:
            chat = self.chat("scenes-video" if isinstance(opened, Clip) else scenes.model_for(Path(path or "")))
            inputs = chat.inputs(opened, question)
            shown = Shown(opened=describe(opened))
            asked.check(chat.model)  # a plan that this model refuses should not wait for an answer
            began = time.perf_counter()
            for shown.dense in chat.stream(inputs, self.max_new_tokens):
                yield shown
            dense = time.perf_counter() - began
            with prune(chat.model, asked) as run:
                rankings = run.trace()
                began = time.perf_counter()
                for shown.pruned in chat.stream(inputs, self.max_new_tokens):
                    yield shown
                pruned = time.perf_counter() - began
            answers = ((shown.dense, dense), (shown.pruned, pruned))
            found = draw_steps(chat, opened, inputs, question, answers, run, rankings)
        shown.seen, shown.stages, shown.scores = show_seen(found), stage_pictures(found), score_pictures(found)
        shown.rows = table(found)
        yield shown


def describe(opened: Image.Image | Clip) -> str:
    """What was opened: a picture's size; of a clip the frames that were taken, and what read them."""
    return str(opened) if isinstance(opened, Clip) else f"a picture of {opened.width} x {opened.height} pixels"


def show_seen(found: Explained) -> Image.Image:
    """The picture (of a video: its frames) with all tokens, in the size of those with fewer."""
    side = _side(found)
    return strip([dim(picture, np.ones(found.span.grid[1:], bool), side) for picture in found.pictures], 4)


def stage_pictures(found: Explained) -> list[tuple[Image.Image, str]]:
    """For each stage the picture (of a video: its frames) with everything dark that is gone by then."""
    side = _side(found)
    pairs = []
    for view in found.stages:
        pictures = [dim(picture, kept, side) for picture, kept in zip(found.pictures, view.kept, strict=True)]
        pairs.append((strip(pictures, 4), f"{view.title}: {int(view.kept.sum())} of {int(view.present.sum())} tokens"))
    return pairs


def score_pictures(found: Explained) -> list[tuple[Image.Image, str]]:
    """For each stage that ranked tokens by a number, or picked them in an order, that as colours."""
    side, pairs = _side(found), []
    for view in found.stages:
        ranked = view.ranks > 0
        values = view.scores if view.scored else np.where(ranked, -view.ranks.astype(float), np.nan)
        if not np.isfinite(values).any():
            continue
        pictures = [heat_map(picture, own, side) for picture, own in zip(found.pictures, values, strict=True)]
        what = "score" if view.scored else "order of picking, yellow first"
        pairs.append((strip(pictures, 4), f"{view.title}: {what}"))
    return pairs


def _side(found: Explained) -> int:
    return FRAME_SIDE if len(found.pictures) > 1 else SHORT_SIDE


def table(found: Explained) -> list[list[str]]:
    """Figures of the pruned answer beside the unpruned one."""
    dense, pruned = found.seconds
    times = [f"{1000 * dense:.0f}", f"{1000 * pruned:.0f}", f"{100 * pruned / dense:.0f} %"]
    choosing = ["of that choosing, ms", "", f"{found.report.selection_ms:.1f}", ""]
    return [*map(list, found.report.figures()), ["answer time, ms (one run)", *times], choosing]


EXAMPLES = [
    [str(scenes.IMAGE), scenes.QUESTION],
    [str(scenes.IMAGE), "what shape is yellow ?"],
    [str(scenes.IMAGE), "describe the image ."],
    *([str(page), question] for page, question in zip(scenes.PAGES, scenes.PAGES_QUESTIONS, strict=True)),
    [str(scenes.VIDEO), scenes.VIDEO_QUESTION],
]
