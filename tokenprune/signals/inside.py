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

    Values of groups that are gone mean nothing. pixels: gives float [G, x]. states: gives float [G, u, c], the rows of
    every group. before: the same at the input of the block before. keys: gives float [G, u, v], what that block's
    attention had for keys, before norms and rotation, mean over the heads. attention: by variant of the need, float
    [G, u], attention in that block. sizes: gives float [G], how many groups each one stands for.
    """

    pixels: Callable[[], Tensor]
    states: Callable[[], Tensor]
    before: Callable[[], Tensor]
    keys: Callable[[], Tensor]
    attention: Callable[[Need], Tensor]
    sizes: Callable[[], Tensor]


EncoderProvider = Callable[[Inside, Need], Tensor]  # of all groups: [G, ...]


def group_pixels(inside: Inside, need: Need) -> Tensor:
    """float [G, x]."""
    return inside.pixels()


def group_states(inside: Inside, need: Need) -> Tensor:
    """float32 [G, c]."""
    return inside.states().float().mean(1)


def group_rows(inside: Inside, need: Need) -> Tensor:
    """float32 [G, u * c]."""
    return inside.states().float().flatten(1)


def group_changes(inside: Inside, need: Need) -> Tensor:
    """float32 [G]."""
    return (inside.states().float() - inside.before().float()).norm(dim=-1).mean(1)


def group_keys(inside: Inside, need: Need) -> Tensor:
    """float32 [G, v]."""
    return inside.keys().float().mean(1)


def group_attention(inside: Inside, need: Need) -> Tensor:
    """float32 [G]."""
    return inside.attention(need).float().mean(1)


def group_sizes(inside: Inside, need: Need) -> Tensor:
    """float32 [G]."""
    return inside.sizes()


def before_encoder_only(reading: Reading, units: list[Selectable], need: Need) -> Tensor:
    """Nothing: the LLM's layers do not know it."""
    raise MissingSignal(f"{need.signal} is known before and inside the vision encoder alone. Give at='pixels'.")
