"""A method at a place."""

from __future__ import annotations

from dataclasses import dataclass

from tokenprune.errors import BadInput
from tokenprune.methods.base import Method


@dataclass(frozen=True)
class Stage:
    """`method` applied before decoder layer `at` (0 = before the LLM)."""

    at: int
    method: Method

    def __post_init__(self) -> None:
        if isinstance(self.at, bool) or not isinstance(self.at, int) or self.at < 0:
            raise BadInput(f"at={self.at!r} is not a layer. Give a whole number; 0 is before the LLM.")
        if self.at < self.method.first_at:
            raise BadInput(
                f"at={self.at} is too early for {self.method.name}, which reads attention of the layer before it. "
                f"Give at={self.method.first_at} or later."
            )
