"""Receipts, forms, tables, documents, slides and screens, each on a flat ground, with what there is to know of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from eval.worlds.pages.sheet import FONTS, Colour, Sheet, Style, Word
from eval.worlds.pages.text import Words

SIZES = ((14, 15), (18, 17), (16, 26), (28, 20), (28, 31))  # in visual tokens: 210 to 868
SHARES = (0.3, 0.27, 0.2, 0.15, 0.08)  # small ones more often
NARROWEST, SMALLEST, LARGEST = 14, 18, 30  # characters in a line at least; sizes of a font in pixels
LIGHT: tuple[Colour, ...] = ((255, 255, 255), (250, 247, 238), (236, 242, 250), (240, 240, 240), (248, 240, 244))
DARK: tuple[Colour, ...] = ((28, 34, 58), (20, 60, 60), (52, 28, 60), (38, 38, 42))
INKS: tuple[Colour, ...] = ((15, 15, 20), (30, 40, 90), (70, 30, 20), (40, 60, 40))
PALE: tuple[Colour, ...] = ((245, 245, 245), (255, 240, 200), (215, 235, 255))
ACCENTS: tuple[Colour, ...] = ((60, 110, 190), (180, 70, 60), (60, 140, 90), (120, 80, 160))


@dataclass
class Page:
    """A page, and what questions are made of; all text as it is answered, in lower case."""

    kind: str
    pixels: np.ndarray  # uint8 [H, W, 3], sides in whole visual tokens
    words: list[Word]
    marks: list[tuple[str, float, float]]  # check boxes and their centres
    title: str
    pairs: dict[str, str] = field(default_factory=dict)  # values by label
    prices: dict[str, str] = field(default_factory=dict)  # by item
    cells: dict[tuple[str, str], str] = field(default_factory=dict)  # by row and column
    boxes: list[tuple[str, bool]] = field(default_factory=list)  # labels of check boxes, and which is ticked
    counted: tuple[str, int] = ("lines", 0)  # what is counted, and how many there are
    blocks: list[tuple[str, ...]] = field(default_factory=list)  # words that are read together
    clean: bool = True  # whether it is as drawn, without noise and JPEG

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(self.pixels)


class Flow:
    """A sheet that is written on from top to bottom."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], ground: Colour, ink: Colour) -> None:
        self.rng, self.words, self.sheet = rng, Words(rng), Sheet(*size, ground)
        self.restyle(ink)
        self.left = int(rng.integers(4, 14))
        self.right = self.sheet.width - int(rng.integers(4, 14))
        self.y = float(rng.integers(4, 12))

    def restyle(self, ink: Colour) -> None:
        """Another font, size, case and distance of lines."""
        rng, largest = self.rng, min(LARGEST, int(self.sheet.width / NARROWEST / 0.6))
        case = str(rng.choice(["lower", "lower", "title", "upper"]))
        font = FONTS[int(rng.integers(len(FONTS)))]
        self.style = Style(font, int(rng.integers(SMALLEST, largest + 1)), ink, case)
        self.step = self.style.size * float(rng.uniform(1.3, 1.6))

    @property
    def room(self) -> int:
        """Lines that still fit."""
        return max(0, int((self.sheet.height - 4 - self.y) // self.step))

    def next_line(self) -> float:
        """The baseline of the next line."""
        self.y += self.step
        return self.y - 0.3 * self.step

    def title(self, count: int, ink: Colour | None = None) -> str:
        """A heading of up to `count` words, larger where it fits."""
        style = replace(self.style, ink=ink or self.style.ink, case=str(self.rng.choice(["upper", "title"])))
        words = [self.words.word(3, 5) for _ in range(count)]
        large = replace(style, size=min(LARGEST + 2, int(1.25 * style.size)))
        if self._width(words, large) < self.right - self.left:
            style = large
        while len(words) > 1 and self._width(words, style) > self.right - self.left:
            words.pop()
        x = self.left if self.rng.random() < 0.6 else (self.sheet.width - self._width(words, style)) / 2
        self.y += 0.25 * style.size
        baseline = self.next_line()
        for word in words:
            self.sheet.write(word, x, baseline, style, heading=True)
            x += style.width(word) + style.gap
        self.y += 0.2 * style.size
        return " ".join(words)

    def line(self, words: list[str], x: float | None = None, baseline: float | None = None) -> float:
        """Words side by side; where the last one ends."""
        x = self.left if x is None else x
        baseline = self.next_line() if baseline is None else baseline
        for word in words:
            self.sheet.write(word, x, baseline, self.style)
            x += self.style.width(word) + self.style.gap
        return x - self.style.gap

    def block(self, lines: int, left: float | None = None) -> tuple[str, ...]:
        """A paragraph of made-up words that fills up to `lines` lines."""
        left = self.left if left is None else left
        found: list[str] = []
        for _ in range(min(lines, self.room)):
            row: list[str] = []
            while self.rng.random() < 0.9:
                word = self.words.word()
                if left + self._width([*row, word], self.style) > self.right:
                    break
                row.append(word)
            if row:
                self.line(row, left)
                found += row
        return tuple(found)

    def rule(self, ink: Colour | None = None) -> None:
        """A line across."""
        y = round(self.y + 0.1 * self.step)
        line = (self.left, y, self.right, y)
        self.sheet.draw.line(line, fill=ink or self.style.ink, width=int(self.rng.integers(1, 4)))
        self.y += 0.3 * self.step

    def options(self, count: int, left: float) -> list[tuple[str, bool]]:
        """Check boxes under each other, one of them ticked."""
        count = min(count, self.room)
        chosen = int(self.rng.integers(count)) if count else -1
        found = []
        for i in range(count):
            baseline, label = self.next_line(), self.words.word()
            self.sheet.check_box(left, baseline, self.style.size, self.style.ink, i == chosen)
            self.line([label], left + 1.2 * self.style.size, baseline)
            found.append((label, i == chosen))
        return found

    def pairs(self, count: int, colon: bool, left: float | None = None) -> dict[str, str]:
        """Labels with their values, side by side or at both ends of the line."""
        left, found, apart = self.left if left is None else left, {}, self.rng.random() < 0.4
        for label in self.words.labels(min(count, self.room)):
            value = self.words.value()
            written = label + (":" if colon else "")
            needed = self._width([written, value], self.style)
            if left + needed > self.right:
                continue
            baseline = self.next_line()
            end = self.line([written], left, baseline)
            x = self.right - self.style.width(value) if apart else end + self.style.gap
            self.line([value], x, baseline)
            found[label] = value
        return found

    def _width(self, words: list[str], style: Style) -> float:
        return sum(style.width(word) for word in words) + style.gap * (len(words) - 1)


def _pick(rng: np.random.Generator, items: tuple[Colour, ...]) -> Colour:
    return items[int(rng.integers(len(items)))]


def _paper(rng: np.random.Generator, size: tuple[int, int]) -> Flow:
    return Flow(rng, size, _pick(rng, LIGHT), _pick(rng, INKS))


def _receipt(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Flow, dict]:
    flow = _paper(rng, size)
    title = flow.title(2)
    pairs = flow.pairs(int(rng.integers(0, 3)), colon=False) if flow.room > 5 else {}
    flow.rule()
    prices, blocks = {}, []
    for _ in range(min(int(rng.integers(2, 9)), flow.room - 2)):
        price = flow.words.price()
        end = flow.right - flow.style.width(price)
        item = flow.words.word()
        while flow.left + flow.style.width(item) + flow.style.gap > end:
            item = flow.words.word(3, 4)
        baseline = flow.next_line()
        flow.line([item], flow.left, baseline)
        flow.line([price], end, baseline)
        prices[item] = price
        blocks.append((item, price))
    flow.rule()
    (label,), value = flow.words.labels(1), flow.words.price()
    if label not in pairs and flow.left + flow.style.width(label + value) + flow.style.gap < flow.right:
        baseline = flow.next_line()
        flow.line([label], flow.left, baseline)
        flow.line([value], flow.right - flow.style.width(value), baseline)
        pairs[label] = value
    return flow, dict(title=title, pairs=pairs, prices=prices, counted=("items", len(prices)), blocks=blocks)


def _form(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Flow, dict]:
    flow = _paper(rng, size)
    title = flow.title(2)
    pairs = flow.pairs(int(rng.integers(1, 5)), colon=rng.random() < 0.6)
    if rng.random() < 0.5:
        flow.rule(_pick(rng, ACCENTS))
    boxes = flow.options(int(rng.integers(2, 6)), flow.left)
    block = flow.block(int(rng.integers(0, 4)))
    return flow, dict(title=title, pairs=pairs, boxes=boxes, counted=("boxes", len(boxes)), blocks=[block])


def _table(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Flow, dict]:
    flow = _paper(rng, size)
    title = flow.title(2)
    widest = flow.style.size * 3.4
    columns = max(2, min(int((flow.right - flow.left) // widest), int(rng.integers(2, 6))))
    pitch = (flow.right - flow.left) / columns
    ruled, line = rng.random() < 0.6, (150, 150, 160)

    def short(make: Callable[[], str]) -> str:
        while True:
            word = make()
            if flow.style.width(word) < pitch - 8:
                return word

    def row(words: list[str]) -> None:
        baseline = flow.next_line()
        for i, word in enumerate(words):
            if word:
                flow.line([word], flow.left + i * pitch + 4, baseline)
        if ruled:
            y = round(flow.y)
            flow.sheet.draw.line((flow.left, y, flow.right, y), fill=line)

    top = flow.y
    header = ["", *(short(lambda: flow.words.word(2, 4)) for _ in range(columns - 1))]
    row(header)
    if not ruled:
        flow.rule()
    cells, count = {}, min(int(rng.integers(2, 9)), flow.room)
    blocks = []
    for _ in range(count):
        name = short(lambda: flow.words.word(2, 4))
        entries = [short(lambda: flow.words.number(1, 3)) for _ in header[1:]]
        row([name, *entries])
        cells |= {(name, column): entry for column, entry in zip(header[1:], entries, strict=True)}
        blocks.append((name, *entries))
    if ruled:
        for i in range(columns + 1):
            x = round(flow.left + i * pitch)
            flow.sheet.draw.line((x, round(top + 0.2 * flow.style.size), x, round(flow.y)), fill=line)
    return flow, dict(title=title, cells=cells, counted=("rows", count), blocks=blocks)


def _document(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Flow, dict]:
    flow = _paper(rng, size)
    title = flow.title(3)
    blocks: list[tuple[str, ...]] = []
    lines = 0
    while flow.room >= 1 and len(blocks) < 4:
        before = flow.y
        block = flow.block(int(rng.integers(1, 4)))
        if block:
            blocks.append(block)
        lines += round((flow.y - before) / flow.step)
        flow.y += float(rng.uniform(0.3, 0.9)) * flow.step
    return flow, dict(title=title, counted=("lines", lines), blocks=blocks)


def _slide(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Flow, dict]:
    dark = rng.random() < 0.6
    flow = Flow(rng, size, _pick(rng, DARK if dark else LIGHT), _pick(rng, PALE if dark else INKS))
    title = flow.title(3, _pick(rng, ACCENTS) if not dark else None)
    if rng.random() < 0.6:
        flow.rule(_pick(rng, ACCENTS))
    blocks: list[tuple[str, ...]] = []
    left, accent, radius = flow.left + 0.9 * flow.style.size, _pick(rng, ACCENTS), flow.style.size / 6
    for _ in range(int(rng.integers(1, 6))):
        before = flow.y
        block = flow.block(int(rng.integers(1, 3)), left)
        if not block:
            continue
        x, y = flow.left + radius + 1, before + 0.42 * flow.step
        flow.sheet.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=accent)
        blocks.append(block)
        flow.y += 0.2 * flow.step
    return flow, dict(title=title, counted=("points", len(blocks)), blocks=blocks)


def _screen(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Flow, dict]:
    flow = Flow(rng, size, _pick(rng, LIGHT), _pick(rng, INKS))
    bar = 1.25 * flow.style.size + flow.step
    flow.sheet.draw.rectangle((0, 0, flow.sheet.width, round(bar)), fill=_pick(rng, ACCENTS))
    title = flow.title(2, (255, 255, 255))
    flow.y = max(flow.y, bar + 2)
    boxes = flow.options(int(rng.integers(2, 6)), flow.left) if rng.random() < 0.6 else []
    pairs = flow.pairs(int(rng.integers(1, 4)), colon=True)
    words, x = [], float(flow.left)
    if flow.room:
        baseline = flow.next_line()
        plain, flow.style = flow.style, replace(flow.style, ink=(255, 255, 255))
        for _ in range(int(rng.integers(1, 4))):
            word = flow.words.word(3, 5)
            end = x + flow.style.width(word) + 0.6 * flow.style.size
            if end > flow.right:
                break
            top, bottom = baseline - 0.95 * flow.style.size, baseline + 0.35 * flow.style.size
            flow.sheet.draw.rounded_rectangle((x, top, end, bottom), 4, fill=_pick(rng, ACCENTS))
            flow.line([word], x + 0.3 * flow.style.size, baseline)
            words.append(word)
            x = end + 0.5 * flow.style.size
        flow.style = plain
    return flow, dict(title=title, pairs=pairs, boxes=boxes, counted=("boxes", len(boxes)), blocks=[tuple(words)])


def make_drill(rng: np.random.Generator, size: tuple[int, int]) -> Page:
    """A page for the tower: full of words, numbers and check boxes, each line in a style of its own."""
    flow = Flow(rng, size, (0, 0, 0), (0, 0, 0))
    flow.y = float(rng.uniform(0, 8))
    while True:
        dark = rng.random() < 0.25
        flow.restyle(_pick(rng, PALE if dark else INKS))
        if not flow.room:
            break
        top, baseline = flow.y, flow.next_line()
        band = (0, round(top), flow.sheet.width, flow.sheet.height)
        flow.sheet.draw.rectangle(band, fill=_pick(rng, (*DARK, *ACCENTS) if dark else LIGHT))
        x = float(rng.uniform(0, 1.5 * flow.style.size))
        while True:
            word = flow.words.word() if rng.random() < 0.65 else flow.words.value()
            if rng.random() < 0.1 and x + flow.style.size < flow.sheet.width:
                flow.sheet.check_box(x, baseline, flow.style.size, flow.style.ink, rng.random() < 0.5)
                x += 1.2 * flow.style.size
            word += ":" if rng.random() < 0.1 else ""
            if x + flow.style.width(word) > flow.sheet.width:
                break
            flow.line([word], x, baseline)
            x += flow.style.width(word) + flow.style.gap * float(rng.choice((1, 1, 2)))
        if rng.random() < 0.2:
            flow.rule()
    return _finish(rng, "drill", flow, {"title": ""})


KINDS: dict[str, Callable[[np.random.Generator, tuple[int, int]], tuple[Flow, dict]]] = {
    "receipt": _receipt,
    "form": _form,
    "table": _table,
    "document": _document,
    "slide": _slide,
    "screen": _screen,
}


def choose_size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height in visual tokens."""
    return SIZES[int(rng.choice(len(SIZES), p=SHARES))]


def make_page(rng: np.random.Generator, size: tuple[int, int] | None = None) -> Page:
    """A page of any kind; every third one is noisy, every fourth one has been through JPEG."""
    size = size or choose_size(rng)
    kind = list(KINDS)[int(rng.integers(len(KINDS)))]
    return _finish(rng, kind, *KINDS[kind](rng, size))


def _finish(rng: np.random.Generator, kind: str, flow: Flow, facts: dict) -> Page:
    noise = float(rng.uniform(2, 8)) if rng.random() < 1 / 3 else 0.0
    quality = int(rng.integers(60, 95)) if rng.random() < 1 / 4 else None
    sheet = flow.sheet
    pixels, clean = sheet.age(rng, noise, quality), not noise and quality is None
    return Page(kind=kind, pixels=pixels, words=sheet.words, marks=sheet.marks, clean=clean, **facts)
