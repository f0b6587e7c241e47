"""A sheet to write on, which remembers where every character of every word stands."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

TOKEN = 16  # pixels along one side of a visual token
FONTS = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "DejaVuSans-Bold")
EMPTY, TICKED = "empty", "ticked"  # what a check box is, where characters are named
Colour = tuple[int, int, int]


@lru_cache(maxsize=256)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that comes with matplotlib."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


@dataclass(frozen=True)
class Style:
    """How text is written: font, size in pixels, colour, and its case: lower, upper or title."""

    font: str
    size: int
    ink: Colour
    case: str = "lower"

    @property
    def loaded(self) -> ImageFont.FreeTypeFont:
        return load_font(self.font, self.size)

    def shape(self, text: str) -> str:
        return {"lower": text, "upper": text.upper(), "title": text[:1].upper() + text[1:]}[self.case]

    def width(self, text: str) -> float:
        """Of a word in pixels."""
        return self.loaded.getlength(self.shape(text))

    @property
    def gap(self) -> float:
        """Between words."""
        return max(0.45 * self.size, self.loaded.getlength(" "))


@dataclass(frozen=True)
class Word:
    """A word as it is read, its box (left, top, right, bottom) in pixels, and the centres of its characters."""

    text: str
    box: tuple[float, float, float, float]
    centres: tuple[tuple[float, float], ...]
    heading: bool = False


class Sheet:
    """A picture of width x height visual tokens on a flat ground."""

    def __init__(self, width: int, height: int, ground: Colour) -> None:
        """width, height: in visual tokens."""
        self.width, self.height = width * TOKEN, height * TOKEN
        self.image = Image.new("RGB", (self.width, self.height), ground)
        self.draw = ImageDraw.Draw(self.image)
        self.words: list[Word] = []
        self.marks: list[tuple[str, float, float]] = []  # check boxes: what they are, and their centres

    def write(self, text: str, x: float, baseline: float, style: Style, heading: bool = False) -> Word:
        """One word from x on; its descenders go below the baseline."""
        shown, font = style.shape(text), style.loaded
        self.draw.text((x, baseline), shown, font=font, fill=style.ink, anchor="ls")
        ends = [font.getlength(shown[:i]) for i in range(len(shown) + 1)]
        middle = baseline - 0.36 * style.size
        centres = tuple((x + (a + b) / 2, middle) for a, b in itertools.pairwise(ends))
        box = (x, baseline - 0.78 * style.size, x + ends[-1], baseline + 0.22 * style.size)
        word = Word(text, box, centres, heading)
        self.words.append(word)
        return word

    def check_box(self, x: float, baseline: float, size: int, ink: Colour, ticked: bool) -> None:
        """A square on the baseline, crossed or ticked or empty."""
        side, line = round(0.8 * size), max(2, size // 10)
        left, top = round(x), round(baseline - side)
        box = (left, top, left + side, top + side)
        self.draw.rectangle(box, outline=ink, width=line)
        if ticked:
            inner = side // 4
            a, b = (left + inner, top + inner), (left + side - inner, top + side - inner)
            self.draw.line((*a, *b), fill=ink, width=line + 1)
            self.draw.line((a[0], b[1], b[0], a[1]), fill=ink, width=line + 1)
        self.marks.append((TICKED if ticked else EMPTY, left + side / 2, top + side / 2))

    def age(self, rng: np.random.Generator, noise: float, quality: int | None) -> np.ndarray:
        """uint8 [H, W, 3]: the sheet with noise of a standard deviation, through JPEG of a quality."""
        pixels = np.asarray(self.image, dtype=np.float32)
        if noise:
            pixels = pixels + rng.normal(0, noise, pixels.shape).astype(np.float32)
        found = pixels.clip(0, 255).astype(np.uint8)
        if quality is not None:
            file = BytesIO()
            Image.fromarray(found).save(file, "jpeg", quality=quality)
            found = np.asarray(Image.open(file).convert("RGB"))
        return found
