"""The bars: what was asked of each figure, what it is, and whether that is enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from eval.bench.cells import before_llm, inside_llm

OVER_IDEAL, OF_PROMISE = 1.05, 0.95


@dataclass(frozen=True)
class Bar:
    """One bar: `value` (median; smallest and largest round) is to be at most, or at least, `limit`."""

    name: str
    where: str
    value: float
    low: float
    high: float
    limit: float
    at_most: bool

    @property
    def met(self) -> bool:
        """Whether the median is good enough."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def outcomes(result: dict[str, Any], methods: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The measured outcomes of these methods, with their cell."""
    for cell, measured in result["cells"].items():
        for one in measured["outcomes"]:
            if one["label"].split()[0] in methods and not one["label"].endswith(" 1.0"):
                yield cell, one


def of_prefill(result: dict[str, Any]) -> list[Bar]:
    """Before the LLM: pruned over ideal, with and without selection. Inside: the share of the promised speed-up."""
    found = []
    for cell, one in outcomes(result, before_llm()):
        for name, key in (("over ideal", "over_ideal"), ("over ideal without selection", "net_over_ideal")):
            found.append(_bar(name, cell, one, one[key], OVER_IDEAL, True))
    for cell, one in outcomes(result, inside_llm()):
        share = {k: v / one["promised"] for k, v in one["speedup"].items()}
        found.append(_bar("share of the promised speed-up", cell, one, share, OF_PROMISE, False))
    return found


def _bar(name: str, cell: str, one: dict[str, Any], spread: dict[str, float], limit: float, at_most: bool) -> Bar:
    return Bar(name, f"{cell}: {one['label']}", spread["median"], spread["low"], spread["high"], limit, at_most)


def as_rows(bars: list[Bar]) -> list[dict[str, Any]]:
    """For the result file."""
    return [asdict(bar) | {"met": bar.met} for bar in bars]
