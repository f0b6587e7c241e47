"""Questions about a clip, and their answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eval.worlds.base import Question, pick
from eval.worlds.clips.draw import COLOURS, KINDS, STEPS, WAYS, Actor, Clip

NUMBERS = ("zero", "one", "two", "three")


def _first(rng: np.random.Generator, clip: Clip) -> Question:
    return Question("first", "what appears first ?", clip.actors[0].name)


def _last(rng: np.random.Generator, clip: Clip) -> Question:
    return Question("last", "what appears last ?", clip.actors[-1].name)


def _direction(rng: np.random.Generator, clip: Clip) -> Question:
    actor = pick(rng, list(clip.actors))
    return Question("direction", f"where does the {actor.name} go ?", actor.way)


def _count(rng: np.random.Generator, clip: Clip) -> Question:
    return Question("count", "how many flashes are there ?", NUMBERS[len(clip.flashes)])


def _colour(rng: np.random.Generator, clip: Clip) -> Question | None:
    kinds = [a.kind for a in clip.actors]
    actor = pick(rng, [a for a in clip.actors if not a.later and kinds.count(a.kind) == 1])
    return actor and Question("colour", f"what colour is the {actor.kind} ?", actor.colour)


def _change(rng: np.random.Generator, clip: Clip) -> Question | None:
    actor = _changing(clip)
    return actor and Question("change", f"what colour does the {actor.name} become ?", actor.later)


def _when(rng: np.random.Generator, clip: Clip) -> Question:
    asked = [(f"when does the {actor.name} appear ?", actor.step) for actor in clip.actors]
    actor = _changing(clip)
    if actor is not None:
        asked.append((f"when does the {actor.name} change ?", actor.change))
    text, step = pick(rng, asked)
    return Question("when", text, f"t{step}")


def _changing(clip: Clip) -> Actor | None:
    return next((a for a in clip.actors if a.later), None)


ASK: dict[str, Callable[[np.random.Generator, Clip], Question | None]] = {
    "first": _first,
    "last": _last,
    "direction": _direction,
    "count": _count,
    "colour": _colour,
    "change": _change,
    "when": _when,
}


def vocabulary() -> list[str]:
    """Every word that a question or an answer can hold, in a fixed order."""
    words = [*COLOURS, *KINDS, *WAYS, *(f"t{i}" for i in range(STEPS)), *NUMBERS]
    text = "what appears first last where does the go how many flashes are there colour is become when appear change ?"
    return words + text.split()
