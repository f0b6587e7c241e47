"""A method at a place."""

from __future__ import annotations

from dataclasses import dataclass

from tokenprune.errors import BadInput, unknown
from tokenprune.methods.base import SCOPES, Method


@dataclass(frozen=True)
class Stage:
    """`method` applied before decoder layer `at` (0 = before the LLM).

    scope: what a budget counts in. `part` is every base image, tile grid or video by itself, `item` a picture with all
    its parts. The default is the method's own.
    """

    at: int
    method: Method
    scope: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.at, bool) or not isinstance(self.at, int) or self.at < 0:
            raise BadInput(f"at={self.at!r} is not a layer. Give a whole number; 0 is before the LLM.")
        if not isinstance(self.method, Method):
            raise BadInput(f"{self.method!r} is not a method. Write Stage(at, DivPrune(keep=0.1)).")
        if self.at < self.method.first_at:
            raise BadInput(
                f"at={self.at} is too early for {self.method.name}, which reads attention of the layer before it. "
                f"Give at={self.method.first_at} or later."
            )
        if not self.scope:
            object.__setattr__(self, "scope", self.method.scope)
        if self.scope not in SCOPES:
            raise unknown("scope", self.scope, SCOPES)
