"""Questions about a scene, their answers, and how far off a position is."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from eval.worlds.base import Question, pick
from eval.worlds.scenes.draw import COLOURS, DIGITS, GRID, PATCH, SHAPES, Scene

NUMBERS = ("zero", "one", "two", "three", "four", "five")
SIDES = {
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}
BOX = 24  # side in pixels of the fixed box that position answers are compared with
PLURALS = {s: s + ("es" if s == "cross" else "s") for s in SHAPES}


def _colour(rng: np.random.Generator, scene: Scene) -> Question | None:
    kinds = [t.kind for t in scene.things]
    thing = pick(rng, [t for t in scene.things if kinds.count(t.kind) == 1])
    return thing and Question("colour", f"what colour is the {thing.kind} ?", thing.colour, thing)


def _shape(rng: np.random.Generator, scene: Scene) -> Question | None:
    shapes = [t for t in scene.things if not t.is_digit]
    colours = [t.colour for t in shapes]
    thing = pick(rng, [t for t in shapes if colours.count(t.colour) == 1])
    return thing and Question("shape", f"what shape is {thing.colour} ?", thing.kind, thing)


def _digit(rng: np.random.Generator, scene: Scene) -> Question | None:
    digits = [t for t in scene.things if t.is_digit]
    colours = [t.colour for t in digits]
    thing = pick(rng, [t for t in digits if colours.count(t.colour) == 1])
    return thing and Question("digit", f"what digit is {thing.colour} ?", thing.kind, thing)


def _count(rng: np.random.Generator, scene: Scene) -> Question:
    counts = {f"how many {PLURALS[s]} are there ?": sum(t.kind == s for t in scene.things) for s in SHAPES}
    counts |= {f"how many {c} objects are there ?": sum(t.colour == c for t in scene.things) for c in COLOURS}
    counts["how many digits are there ?"] = sum(t.is_digit for t in scene.things)
    number = pick(rng, sorted(set(counts.values())))
    text = pick(rng, [q for q, n in counts.items() if n == number])
    return Question("count", text, NUMBERS[number])


def _existence(rng: np.random.Generator, scene: Scene) -> Question:
    """Half yes; nine in ten of the no questions differ from a thing that is there in exactly one attribute."""
    thing = pick(rng, list(scene.things))
    if rng.random() < 0.5:
        return Question("existence", f"is there a {thing.name} ?", "yes", thing)
    names = {t.name for t in scene.things}
    kinds = DIGITS if thing.is_digit else SHAPES
    roll = rng.random()
    if roll < 0.45:
        absent = [f"{c} {thing.kind}" for c in COLOURS]
    elif roll < 0.9:
        absent = [f"{thing.colour} {k}" for k in kinds]
    else:
        absent = [f"{c} {k}" for c in COLOURS for k in kinds]
    return Question("existence", f"is there a {pick(rng, [n for n in absent if n not in names])} ?", "no")


def _position(rng: np.random.Generator, scene: Scene) -> Question:
    thing = pick(rng, list(scene.things))
    column, row = thing.bin
    return Question("position", f"where is the {thing.name} ?", f"x{column} y{row}", thing)


def _relation(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Asked only where exactly one thing lies on that side, so that the answer is unique."""
    found = []
    for side, (axis, sign) in SIDES.items():
        order = sorted(scene.things, key=lambda t: sign * (t.x, t.y)[axis], reverse=True)
        found.append((side, order[1], order[0]))
    side, anchor, answer = pick(rng, found)
    return Question("relation", f"what is {side} the {anchor.name} ?", answer.name, answer)


def _caption(rng: np.random.Generator, scene: Scene) -> Question:
    names = [t.name for t in sorted(scene.things, key=lambda t: t.x)]
    return Question("caption", "describe the image .", " , ".join(names))


ASK: dict[str, Callable[[np.random.Generator, Scene], Question | None]] = {
    "colour": _colour,
    "shape": _shape,
    "digit": _digit,
    "count": _count,
    "existence": _existence,
    "position": _position,
    "relation": _relation,
    "caption": _caption,
}


def vocabulary() -> list[str]:
    """Every word that a question or an answer can hold, in a fixed order."""
    words = list(COLOURS) + list(SHAPES) + list(DIGITS)
    words += [f"x{i}" for i in range(GRID)] + [f"y{i}" for i in range(GRID)] + list(NUMBERS)
    words += list(PLURALS.values())
    words += [
        "yes",
        "no",
        "what",
        "colour",
        "is",
        "the",
        "shape",
        "digit",
        "digits",
        "how",
        "many",
        "are",
        "there",
        "objects",
        "a",
        "where",
    ]
    words += ["left", "right", "of", "above", "below", "describe", "image", "it", "an", ",", ".", "?"]
    return words


def centre_of(answer: str) -> tuple[float, float] | None:
    """Pixel centre that a position answer names, or None where it is not a coordinate pair."""
    found = re.search(r"x(\d+)\s+y(\d+)", answer)
    return None if found is None else tuple((int(v) + 0.5) * PATCH for v in found.groups())


def distance(question: Question, answer: str) -> float:
    """Pixels between the answered and the true centre; infinite where no pair was answered."""
    centre = centre_of(answer)
    if centre is None:
        return float("inf")
    return float(np.hypot(centre[0] - question.target.x, centre[1] - question.target.y))


def box_iou(question: Question, answer: str) -> float:
    """IoU of two 24-pixel boxes, one around the answered and one around the true centre."""
    centre = centre_of(answer)
    if centre is None:
        return 0.0
    w, h = (max(0.0, BOX - abs(a - b)) for a, b in zip(centre, (question.target.x, question.target.y), strict=True))
    return w * h / (2 * BOX * BOX - w * h)
