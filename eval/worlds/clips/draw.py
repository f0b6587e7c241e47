"""Clips of coloured shapes that appear, move and change colour, over noise that flashes now and then.

Time is counted in steps of two frames, which the model sees as one;
whatever happens, happens between the two frames of a step, so that the step shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from PIL import Image, ImageDraw

from eval.worlds.scenes.draw import COLOURS as ALL_COLOURS

SIZE = 64
CELL = 16  # pixels along one side of a visual token
SIDE = SIZE // CELL
STEPS = 16
FRAMES = 2 * STEPS
COLOURS = {name: ALL_COLOURS[name] for name in ("red", "green", "blue", "yellow", "purple", "white")}
KINDS = ("circle", "square", "triangle", "cross", "ring")
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "nowhere": (0, 0)}
EVENTS = ("nothing", "appears", "changes")
RADIUS = 8
FLASH = 80


@dataclass(frozen=True)
class Actor:
    """One thing: what it looks like, when it appears, where it goes, and what colour it takes on (and when)."""

    kind: str
    colour: str
    step: int
    way: str
    start: tuple[int, int]
    later: str = ""
    change: int = -1

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"

    def place(self, frame: int) -> tuple[int, int]:
        """Centre in pixels."""
        gone = max(frame - 2 * self.step - 1, 0)  # one pixel a frame
        dx, dy = WAYS[self.way]
        return self.start[0] + dx * gone, self.start[1] + dy * gone

    def colour_at(self, frame: int) -> str:
        return self.later if self.later and frame > 2 * self.change else self.colour

    def is_there(self, frame: int) -> bool:
        return frame > 2 * self.step

    def event(self, step: int) -> str:
        return EVENTS[1] if step == self.step else EVENTS[2] if step == self.change else EVENTS[0]


@dataclass(frozen=True)
class Clip:
    """The actors by the time they appear, the steps at which the background flashes, and what is to be seen."""

    actors: tuple[Actor, ...]
    flashes: tuple[int, ...]
    pixels: np.ndarray  # uint8 [32, 64, 64, 3]
    owner: np.ndarray  # int8 [16, 16]: for each step and cell the index of the actor that covers it, -1 for none

    @property
    def images(self) -> list[Image.Image]:
        return [Image.fromarray(frame) for frame in self.pixels]


def make_clip(rng: np.random.Generator) -> Clip:
    """Draw a clip of two or three actors, no two of the same look, none overlapping."""
    actors = _cast(rng, int(rng.integers(2, 4)))
    flashes = _steps(rng, int(rng.integers(0, 4)), 0, STEPS)
    noise = rng.integers(-24, 25, (FRAMES, SIZE, SIZE, 1), dtype=np.int16)
    pixels = noise + rng.integers(60, 111, 3, dtype=np.int16)
    for step in flashes:
        pixels[2 * step : 2 * step + 2] += FLASH
    cover = np.zeros((len(actors), STEPS, SIDE * SIDE))
    for i, actor in enumerate(actors):
        mask = _mask(actor.kind)
        for frame in range(2 * actor.step + 1, FRAMES):
            x, y = actor.place(frame)
            box = slice(y - RADIUS, y + RADIUS + 1), slice(x - RADIUS, x + RADIUS + 1)
            shade = np.array(ALL_COLOURS[actor.colour_at(frame)], dtype=np.int16)
            pixels[frame][box][mask] = shade + noise[frame][box][mask] // 2
            whole = np.zeros((SIZE, SIZE))
            whole[box] = mask
            cover[i, frame // 2] += whole.reshape(SIDE, CELL, SIDE, CELL).mean((1, 3)).reshape(-1)
    owner = np.where(cover.max(0) >= 0.15, cover.argmax(0), -1).astype(np.int8)
    return Clip(tuple(actors), flashes, pixels.clip(0, 255).astype(np.uint8), owner)


def _steps(rng: np.random.Generator, count: int, low: int, high: int) -> tuple[int, ...]:
    """Ascending steps from low to high - 1, no two next to each other."""
    free = high - low - (count - 1)
    return tuple(int(s) for s in np.sort(rng.permutation(free)[:count]) + low + np.arange(count))


def _cast(rng: np.random.Generator, count: int) -> list[Actor]:
    looks = [(k, c) for k in KINDS for c in COLOURS]
    picked = [looks[i] for i in rng.permutation(len(looks))[:count]]
    if rng.random() < 0.3:  # two of a kind or of a colour, so that neither names an actor
        kind, colour = picked[0]
        alike = [(k, c) for k, c in looks if (k == kind) != (c == colour)]
        picked[1] = alike[int(rng.integers(len(alike)))]
    changes = int(rng.integers(count)) if rng.random() < 0.75 else -1
    while True:
        actors = []
        for i, step in enumerate(_steps(rng, count, 1, 12)):
            kind, colour = picked[i]
            later = [c for c in COLOURS if c != colour and (kind, c) not in picked]
            more = {"later": later[int(rng.integers(len(later)))], "change": int(rng.integers(step + 2, 16))}
            way = list(WAYS)[int(rng.integers(len(WAYS)))]
            start = tuple(int(v) for v in rng.integers(RADIUS, SIZE - RADIUS, 2))
            actors.append(Actor(kind, colour, step, way, start, **(more if i == changes else {})))
        if len(set(picked)) == count and _apart(actors):
            return actors
        if len(set(picked)) < count:
            picked = [looks[i] for i in rng.permutation(len(looks))[:count]]


def _apart(actors: list[Actor]) -> bool:
    """Whether all stay inside the picture and clear of each other."""
    for actor in actors:
        if not all(RADIUS <= v < SIZE - RADIUS for v in actor.place(FRAMES - 1)):
            return False
    for a, b in combinations(actors, 2):
        for frame in range(2 * max(a.step, b.step) + 1, FRAMES):
            if max(abs(p - q) for p, q in zip(a.place(frame), b.place(frame), strict=True)) <= 2 * RADIUS + 1:
                return False
    return True


@lru_cache
def _mask(kind: str) -> np.ndarray:
    """Boolean [17, 17]: the pixels of a thing."""
    canvas = Image.new("L", (2 * RADIUS + 1, 2 * RADIUS + 1))
    draw, r = ImageDraw.Draw(canvas), RADIUS
    match kind:
        case "circle":
            draw.ellipse((0, 0, 2 * r, 2 * r), fill=255)
        case "square":
            draw.rectangle((1, 1, 2 * r - 1, 2 * r - 1), fill=255)
        case "triangle":
            draw.polygon([(r, 0), (0, 2 * r), (2 * r, 2 * r)], fill=255)
        case "cross":
            draw.rectangle((r - 2, 0, r + 2, 2 * r), fill=255)
            draw.rectangle((0, r - 2, 2 * r, r + 2), fill=255)
        case "ring":
            draw.ellipse((0, 0, 2 * r, 2 * r), outline=255, width=4)
    return np.asarray(canvas) > 127
