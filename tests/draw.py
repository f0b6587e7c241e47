"""Which cases of the full product a run of the gate takes: one of every few that are alike, others with every seed.

The seed is the day, or TP_SEED; a run shows it at its head. `--all` (or TP_ALL=1) takes every case.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import date
from itertools import pairwise
from typing import Any
from zlib import crc32

import pytest

SEED = int(os.environ.setdefault("TP_SEED", str(date.today().toordinal())))  # set for the workers of this run too
TURNS = 8  # so many consecutive seeds take every case once at least
DRAWN: dict[str, tuple[list[Any], Callable[..., Any]]] = {}  # test -> its full product, and what is alike there


def everything() -> bool:
    """Whether nothing is drawn."""
    return os.environ.get("TP_ALL", "0") != "0"


def cases(names: str, found: Sequence[Any], by: Callable[..., Any]) -> Callable:
    """Parametrize a test by what is drawn of `found`. by: what a case, given its values, is one of."""

    def parametrized(test: Callable) -> Callable:
        DRAWN[f"{test.__module__}.{test.__name__}"] = list(found), by
        taken = found if everything() else drawn(found, by, test.__name__)
        return pytest.mark.parametrize(names, taken)(test)

    return parametrized


def values_of(case: Any) -> tuple:
    """The arguments that a case gives to its test."""
    values = getattr(case, "values", case)
    return values if isinstance(values, tuple) else (values,)


def chunks(found: Sequence[Any], by: Callable[..., Any]) -> list[list[Any]]:
    """Cases that are alike, at most `TURNS` neighbours together."""
    groups: dict[Any, list[Any]] = {}
    for case in found:
        groups.setdefault(by(*values_of(case)), []).append(case)
    cut = []
    for group in groups.values():
        pieces = -(-len(group) // TURNS)
        edges = [len(group) * i // pieces for i in range(pieces + 1)]
        cut += [group[a:b] for a, b in pairwise(edges)]
    return cut


def drawn(found: Sequence[Any], by: Callable[..., Any], test: str, seed: int = SEED) -> list[Any]:
    """One case of each chunk; which one differs between tests."""
    turn = seed + crc32(test.encode())
    return [chunk[(turn + number) % len(chunk)] for number, chunk in enumerate(chunks(found, by))]
