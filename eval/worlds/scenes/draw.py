"""Scenes of coloured shapes and glyph digits over noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 96
PATCH = 8
GRID = SIZE // PATCH
COLOURS = {
    "red": (220, 45, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 225),
    "yellow": (235, 215, 50),
    "purple": (160, 50, 190),
    "cyan": (60, 205, 215),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
DIGITS = tuple(str(d) for d in range(10))
KINDS = SHAPES + DIGITS
MARGIN = 13  # pixels between a centre and the edge
MIN_GAP = 10  # pixels between any two centres on each axis, so that left/right/above/below are never ambiguous


@dataclass(frozen=True)
class Thing:
    """One object: a shape or a digit, its colour, its centre and half size in pixels."""

    kind: str
    colour: str
    x: int
    y: int
    radius: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"

    @property
    def is_digit(self) -> bool:
        return self.kind in DIGITS

    @property
    def bin(self) -> tuple[int, int]:
        """Column and row of the patch that holds the centre."""
        return self.x // PATCH, self.y // PATCH


@dataclass(frozen=True)
class Scene:
    """The things, in the order they were drawn, and the picture as uint8 [96, 96, 3]."""

    things: tuple[Thing, ...]
    pixels: np.ndarray
    owner: np.ndarray  # int8 [144]: index of the thing that covers a patch, -1 for background

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(self.pixels)


def make_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene of two to five things, no two with the same colour and kind, none overlapping."""
    things = _place(rng, int(rng.integers(2, 6)))
    pixels = np.clip(rng.normal(rng.uniform(70, 130), 22, (SIZE, SIZE, 3)), 0, 255)
    cover = np.zeros((len(things), GRID * GRID))
    for i, thing in enumerate(things):
        mask = _mask(thing)
        shade = np.array(COLOURS[thing.colour]) + rng.normal(0, 10, 3)
        pixels[mask] = shade + rng.normal(0, 8, (int(mask.sum()), 1))
        cover[i] = mask.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3)).reshape(-1)
    owner = np.where(cover.max(0) >= 0.2, cover.argmax(0), -1).astype(np.int8)
    return Scene(tuple(things), np.clip(pixels, 0, 255).astype(np.uint8), owner)


def _place(rng: np.random.Generator, count: int) -> list[Thing]:
    names = _names(rng, count)
    while True:
        radii = rng.integers(10, 13, count)
        places = zip(names, _spread(rng, count), _spread(rng, count), radii, strict=True)
        things = [Thing(kind, colour, int(x), int(y), int(r)) for (kind, colour), x, y, r in places]
        if all(_apart(a, b) for a, b in combinations(things, 2)):
            return things


def _names(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Different (kind, colour) pairs. Most scenes repeat a kind or a colour, so that neither names a thing."""
    theme = str(rng.choice(["kind", "colour", "none"], p=[0.4, 0.4, 0.2]))
    theme_kind, theme_colour = str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS)))
    names: list[tuple[str, str]] = []
    while len(names) < count:
        kind = str(rng.choice(DIGITS if rng.random() < 0.3 else SHAPES))
        colour = str(rng.choice(list(COLOURS)))
        if rng.random() < 0.6:
            kind = theme_kind if theme == "kind" else kind
            colour = theme_colour if theme == "colour" else colour
        if (kind, colour) not in names:
            names.append((kind, colour))
    return names


def _spread(rng: np.random.Generator, count: int) -> np.ndarray:
    """Centres along one axis, at least MIN_GAP apart, in random order."""
    free = SIZE - 2 * MARGIN - MIN_GAP * (count - 1)
    places = np.sort(rng.integers(0, free + 1, count)) + MARGIN + MIN_GAP * np.arange(count)
    return rng.permutation(places)


def _apart(a: Thing, b: Thing) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def _mask(thing: Thing) -> np.ndarray:
    """Boolean [96, 96]: the pixels of the thing."""
    canvas = Image.new("L", (SIZE, SIZE))
    draw = ImageDraw.Draw(canvas)
    x, y, r = thing.x, thing.y, thing.radius
    box = (x - r, y - r, x + r, y + r)
    match thing.kind:
        case "circle":
            draw.ellipse(box, fill=255)
        case "square":
            draw.rectangle((x - r + 1, y - r + 1, x + r - 1, y + r - 1), fill=255)
        case "triangle":
            draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=255)
        case "diamond":
            draw.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=255)
        case "cross":
            arm = max(2, r // 3)
            draw.rectangle((x - arm, y - r, x + arm, y + r), fill=255)
            draw.rectangle((x - r, y - arm, x + r, y + arm), fill=255)
        case "ring":
            draw.ellipse(box, outline=255, width=max(3, r // 3))
        case _:
            draw.text((x, y), thing.kind, fill=255, font=_font(int(2.5 * r)), anchor="mm", stroke_width=1)
    return np.asarray(canvas) > 127
