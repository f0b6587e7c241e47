"""Signals that the user brings, because no model computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenprune.errors import BadInput
from tokenprune.signals.need import Need
from tokenprune.signals.reading import Reading, Selectable


def given_per_row(reading: Reading, units: list[Selectable], need: Need) -> Tensor | None:
    """One tensor for each row of the batch."""
    values = _read(reading, need.signal, reading.rows.batch, "rows")
    return None if values is None else torch.stack([values[u.row] for u in units]).to(reading.hidden.device)


def given_per_frame(reading: Reading, units: list[Selectable], need: Need) -> Tensor | None:
    """One value for each frame of each image or video."""
    values = _per_span(reading, need.signal, "frames", lambda span: span.grid[0])
    if values is None:
        return None
    return torch.stack([torch.cat([values[i] for i in u.spans]) for u in units]).to(reading.hidden.device)


def given_per_token(reading: Reading, units: list[Selectable], need: Need) -> Tensor | None:
    """One value for each token of each image or video."""
    values = _per_span(reading, need.signal, "tokens", lambda span: span.count)
    return None if values is None else torch.stack([of_unit(values, u) for u in units]).to(reading.hidden.device)


def of_unit(per_span: list[Tensor], unit: Selectable) -> Tensor:
    """Values of the spans' tokens [n, ...] as those of the tokens that are left of a selectable."""
    return torch.cat([per_span[i] for i in unit.spans])[unit.tokens.to(per_span[unit.spans[0]].device)]


def _per_span(reading: Reading, name: str, what: str, wanted: Callable[[Any], int]) -> list[Tensor] | None:
    values = _read(reading, name, len(reading.rows.spans), "images, tiles and videos")
    for span, value in zip(reading.rows.spans, values or (), strict=False):
        if len(value) != wanted(span):
            raise BadInput(f"{name} was given {len(value)} {what} for an image or video of {wanted(span)}.")
    return values


def _read(reading: Reading, name: str, expected: int, what: str) -> list[Tensor] | None:
    values = reading.given.get(name)
    if values is not None and len(values) != expected:
        raise BadInput(f"{len(values)} tensors were given for {name}, but the prompt has {expected} {what}.")
    return values
