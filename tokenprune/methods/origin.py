"""What a method is held to, and where it deliberately differs from that: the ledger is made of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS = {
    "code": "the published code",
    "paper": "the paper's text",
    "abstract": "the paper's abstract and summaries of it alone: the rest is our reading",
    "ours": "this library: nothing is published",
    "unstated": "not stated by the author of the method",
}


@dataclass(frozen=True)
class Origin:
    """What was read to write a method, and is right where the two differ.

    kind: one of `KINDS`. repository, commit: for `code`, what was read (owner/name on GitHub). note: what else there is
    to know about it.
    """

    kind: str
    repository: str = ""
    commit: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"An origin is one of {', '.join(KINDS)}, not {self.kind!r}.")
        if (self.kind == "code") != bool(self.repository and self.commit):
            raise ValueError("An origin of kind 'code', and no other, has a repository and the commit that was read.")

    def __str__(self) -> str:
        read = f" ({self.repository} at {self.commit})" if self.repository else ""
        return KINDS[self.kind] + read + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class Difference:
    """Where a method departs from its origin, and why. published: options of the method, or arguments of `prune`, that
    give the published behaviour; empty where nothing does."""

    what: str
    why: str
    published: Mapping[str, Any] = field(default_factory=dict)


RENUMBERED = Difference(
    "positions stay those of the full prompt by default",
    "the code renumbers what is left, which loses where things are",
    {"positions": "compact"},
)
