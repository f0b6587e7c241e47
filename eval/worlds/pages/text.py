"""What stands on a page: made-up words, labels, prices and codes, none twice and none that a question uses itself."""

from __future__ import annotations

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
MARKS = ".:-$"
CHARACTERS = LETTERS + DIGITS + MARKS
VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"
LABELS = (
    *("date", "total", "name", "tax", "cash", "phone", "city", "order", "room", "code", "gate", "seat", "tip", "vat"),
    *("client", "status", "user", "email", "size", "level", "mode", "port", "host", "area", "group", "floor", "desk"),
    *("flight", "train", "sum", "rate", "unit", "shift", "badge", "team", "zone"),
)
SPOKEN = (
    *("what", "is", "the", "title", "after", "price", "of", "in", "row", "column", "which", "box", "ticked", "how"),
    *("many", "items", "lines", "rows", "boxes", "points", "on", "page", "where", "transcribe", "block", "at", "are"),
    *("there", "yes", "no"),
)


class Words:
    """Fresh text for one page: nothing is handed out twice."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.taken = set(SPOKEN) | set(LABELS)

    def word(self, low: int = 3, high: int = 6) -> str:
        """A word of `low` to `high` letters, vowels and consonants mixed, or of any letters at all."""
        while True:
            length = int(self.rng.integers(low, high + 1))
            if self.rng.random() < 0.75:
                first = int(self.rng.integers(2))
                sets = [(CONSONANTS, VOWELS)[(i + first) % 2] for i in range(length)]
            else:
                sets = [LETTERS] * length
            found = "".join(s[int(self.rng.integers(len(s)))] for s in sets)
            if self._take(found):
                return found

    def labels(self, count: int) -> list[str]:
        """Different labels."""
        return [LABELS[i] for i in self.rng.permutation(len(LABELS))[:count]]

    def price(self) -> str:
        """As 7.50 or $12.99."""
        while True:
            dollar = "$" if self.rng.random() < 0.2 else ""
            found = f"{dollar}{self.rng.integers(0, 100)}.{self.rng.integers(0, 100):02}"
            if self._take(found):
                return found

    def number(self, low: int = 1, high: int = 4) -> str:
        """A number of `low` to `high` digits."""
        while True:
            length = int(self.rng.integers(low, high + 1))
            found = "".join(DIGITS[int(self.rng.integers(10))] for _ in range(length))
            if self._take(found):
                return found

    def value(self) -> str:
        """What stands after a label: a word, a number, a date, a time or a code."""
        rng = self.rng
        while True:
            match int(rng.integers(6)):
                case 0 | 1:
                    return self.word()
                case 2:
                    return self.number(2, 4)
                case 3:
                    found = f"{rng.integers(1, 32):02}-{rng.integers(1, 13):02}"
                case 4:
                    found = f"{rng.integers(0, 24)}:{rng.integers(0, 60):02}"
                case _:
                    found = f"{rng.integers(0, 10)}{LETTERS[int(rng.integers(26))]}-{rng.integers(0, 100):02}"
            if self._take(found):
                return found

    def _take(self, found: str) -> bool:
        fresh = found not in self.taken
        self.taken.add(found)
        return fresh


def misspell(rng: np.random.Generator, word: str) -> str:
    """The word with another letter or digit at one place."""
    at = int(rng.integers(len(word)))
    same = DIGITS if word[at] in DIGITS else LETTERS
    other = [c for c in same if c != word[at]]
    return word[:at] + other[int(rng.integers(len(other)))] + word[at + 1 :]
