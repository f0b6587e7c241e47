"""Shares of right answers with their standard errors."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from statistics import mean
from typing import Any


def error(rights: Iterable[float], count: int) -> float:
    """Standard error of a mean of shares, each of `count` answers."""
    shares = list(rights)
    return sqrt(sum(p * (1 - p) / count for p in shares)) / len(shares)


def share(rights: Iterable[float], count: int) -> str:
    """A mean of shares in per cent, with its standard error."""
    shares = list(rights)
    return f"{100 * mean(shares):.1f} ± {100 * error(shares, count):.1f}"


def seen_and_blind(data: dict[str, Any]) -> list[list[str]]:
    """Rows of a held-out report: what is right, what is without eyes, and the share of the most frequent answer."""
    names, count, types = ("right", "blind", "majority"), data["questions_per_type"], data["types"]
    rows = [[kind, *(share([one[name]], count) for name in names)] for kind, one in types.items()]
    return [*rows, ["**all**", *(f"**{share((one[name] for one in types.values()), count)}**" for name in names)]]
