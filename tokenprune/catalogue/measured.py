"""What was measured of methods, from the committed results: `measured.json`, which `make readme` writes."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from typing import Any

from tokenprune.methods.base import Method

ABSENT = "not measured here"


@lru_cache(maxsize=1)
def read_measured() -> dict[str, Any]:
    """The figures. choosing: for each size n its prefill in ms and what methods took; models: for each bundled model
    the unpruned share of right answers, and that of methods (with options that differ) by budget."""
    return json.loads((files("tokenprune") / "catalogue" / "measured.json").read_text())


def cost(method: type[Method]) -> list[str]:
    """What its choosing takes, a line for each way that it was timed."""
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for run in read_measured()["choosing"]:
        took = run["ms"].get(method.name)
        if took is not None:
            ms = f"{took:,.0f}" if took >= 100 else f"{took:.2g}"
            groups.setdefault(run["where"], []).append(
                (f"{run['tokens']:,}", ms, f"{100 * took / run['prefill_ms']:.1f}")
            )
    lines = []
    for where, runs in groups.items():
        tokens, ms, shares = (" / ".join(values) for values in zip(*runs, strict=True))
        lines.append(f"to choose from {tokens} tokens takes {ms} ms, {shares} % of the prefill that follows ({where})")
    return lines or [ABSENT]


def scores(method: type[Method]) -> list[str]:
    """Share of right answers of the bundled models, a line for each way that it was run."""
    lines = []
    for model in read_measured()["models"]:
        for label, own in model["right"].items():
            if label.split()[0] == method.name:
                at = ", ".join(f"{100 * right:.1f} % at keep {keep}" for keep, right in own.items())
                name = f"{model['name']}, {label}" if label != method.name else model["name"]
                whole = f"unpruned {100 * model['unpruned']:.1f} %, {model['questions']} questions"
                lines.append(f"{name}: {at} ({whole})")
    return lines or [ABSENT]
