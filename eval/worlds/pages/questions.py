"""Questions about a page, and their answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eval.worlds.base import Question, pick
from eval.worlds.pages.draw import Page
from eval.worlds.pages.sheet import Word
from eval.worlds.pages.text import misspell

LONGEST_BLOCK = 40  # characters, spaces included
BINS = 32  # of the page's width and height, in which boxes are told


def _value(rng: np.random.Generator, page: Page) -> Question | None:
    label = pick(rng, list(page.pairs))
    return None if label is None else Question("value", f'what is after "{label}" ?', page.pairs[label])


def _price(rng: np.random.Generator, page: Page) -> Question | None:
    item = pick(rng, list(page.prices))
    return None if item is None else Question("price", f'price of "{item}" ?', page.prices[item])


def _cell(rng: np.random.Generator, page: Page) -> Question | None:
    where = pick(rng, list(page.cells))
    return None if where is None else Question("cell", f'row "{where[0]}" column "{where[1]}" ?', page.cells[where])


def _ticked(rng: np.random.Generator, page: Page) -> Question | None:
    return Question("ticked", "which box is ticked ?", dict(map(reversed, page.boxes))[True]) if page.boxes else None


def _title(rng: np.random.Generator, page: Page) -> Question:
    return Question("title", "what is the title ?", page.title)


def _count(rng: np.random.Generator, page: Page) -> Question | None:
    noun, number = page.counted
    return Question("count", f"how many {noun} are there ?", str(number)) if number else None


def _word(rng: np.random.Generator, page: Page) -> Question:
    """Half of them are on the page; the others differ from one that is in one letter."""
    there = {word.text for word in page.words}
    while True:
        word = pick(rng, sorted(there)).rstrip(":")
        if rng.random() < 0.5:
            return Question("word", f'is "{word}" on the page ?', "yes")
        other = misspell(rng, word)
        if not {other, other + ":"} & there:
            return Question("word", f'is "{other}" on the page ?', "no")


def _where(rng: np.random.Generator, page: Page) -> Question:
    word = pick(rng, [w for w in page.words if len(w.text) > 1] or page.words)
    box = bins_of(page, word)
    answer = "x{}y{}x{}y{}".format(*box)
    return Question("where", f'where is "{word.text.rstrip(":")}" ?', answer)


def _transcribe(rng: np.random.Generator, page: Page) -> Question | None:
    """From a word to the end of its block."""
    found = []
    for block in page.blocks:
        for i in range(len(block)):
            text = " ".join(block[i:])
            if len(block) - i > 1 and len(text) <= LONGEST_BLOCK:
                found.append((block[i], text))
                break
    one = pick(rng, found)
    return None if one is None else Question("transcribe", f'transcribe the block at "{one[0]}" ?', one[1])


ASK: dict[str, Callable[[np.random.Generator, Page], Question | None]] = {
    "value": _value,
    "price": _price,
    "cell": _cell,
    "ticked": _ticked,
    "title": _title,
    "count": _count,
    "word": _word,
    "where": _where,
    "transcribe": _transcribe,
}


def bins_of(page: Page, word: Word) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a word's box, in 32nds of the page's width and height; both ends inside it."""
    height, width = page.pixels.shape[:2]
    left, top, right, bottom = word.box
    ends = (round(v / side * BINS) for v, side in ((left, width), (top, height), (right, width), (bottom, height)))
    x0, y0, x1, y1 = (min(max(v, 0), BINS) for v in ends)
    return min(x0, BINS - 1), min(y0, BINS - 1), max(x0, x1 - 1), max(y0, y1 - 1)
