"""Signals of a stage before or inside the vision encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tokenprune.errors import MissingSignal
from tokenprune.signals.need import Need
from tokenprune.signals.reading import Reading, Selectable


@dataclass(frozen=True)
class Inside:
    """What such a stage sees of all groups of a call.

    pixels: gives float [G, x]. states: gives float [G, u, c], the rows of every group; those of groups that are gone
    mean nothing.
    """

    pixels: Callable[[], Tensor]
    states: Callable[[], Tensor]


EncoderProvider = Callable[[Inside], Tensor]  # of all groups: [G, ...]


def group_pixels(inside: Inside) -> Tensor:
    """float [G, x]."""
    return inside.pixels()


def group_states(inside: Inside) -> Tensor:
    """float32 [G, c]."""
    return inside.states().float().mean(1)


def before_encoder_only(reading: Reading, units: list[Selectable], need: Need) -> Tensor:
    """Nothing: the LLM's layers do not know it."""
    raise MissingSignal(f"{need.signal} is known before and inside the vision encoder alone. Give at='pixels'.")
