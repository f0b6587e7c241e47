"""Where a stage stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.errors import BadInput

DECODE = "decode"


@dataclass(frozen=True, order=True)
class Layer:
    """Before decoder layer `at`; 0 is before the LLM."""

    at: int
    start: ClassVar[None] = None

    def __post_init__(self) -> None:
        if isinstance(self.at, bool) or not isinstance(self.at, int) or self.at < 0:
            raise BadInput(f"at={self.at!r} is not a layer. Give a whole number; 0 is before the LLM.")

    def __str__(self) -> str:
        return f"before layer {self.at}" if self.at else "before the LLM"


@dataclass(frozen=True, order=True)
class Decode:
    """At every decoding step. start: the layer from which on a step attends to chosen visual tokens alone; it chooses
    by the layer before, which sees all of them."""

    start: int
    at: ClassVar[str] = DECODE

    def __post_init__(self) -> None:
        if isinstance(self.start, bool) or not isinstance(self.start, int) or self.start < 1:
            raise BadInput(
                f"start={self.start!r} is not a layer that has one before it. Give a whole number from 1 on."
            )

    def __str__(self) -> str:
        return f"at every decoding step from layer {self.start}"


Place = Layer | Decode


def place_of(at: Place | int) -> Place:
    """The place that a schedule gives: a number is that of a layer."""
    return at if isinstance(at, Place) else Layer(at)
