"""Signals that somebody brings: what they may be, and which sizes have to agree."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from tokenprune.errors import BadInput
from tokenprune.signals.table import AXES, SIGNALS


def read_signal(name: str, value: Any) -> Tensor:
    """What a user brings, as a tensor of floating point numbers within float32, or of whole ones where they number
    something; else `BadInput`."""
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"{name} is not a tensor, and none can be made of it: {error}") from None
    if SIGNALS[name].numbers:
        if found.is_floating_point() or found.is_complex():
            raise BadInput(f"{name} must be whole numbers, not {found.dtype}.")
        return found.long()
    if found.is_complex():
        raise BadInput(f"{name} must be real numbers, not {found.dtype}.")
    if not found.float().isfinite().all():
        raise BadInput(f"{name} holds NaN or infinite values, or some that float32 cannot hold.")
    return found if found.is_floating_point() else found.float()


def one_dtype(signals: dict[str, Tensor]) -> dict[str, Tensor]:
    """These signals with all that measure something in the widest of their dtypes, so that they can be multiplied."""
    measures = [x.dtype for x in signals.values() if x.is_floating_point()]
    widest = reduce(torch.promote_types, measures) if measures else None
    return {name: x.to(widest) if x.is_floating_point() else x for name, x in signals.items()}


def common_sizes(signals: Iterable[tuple[str, Tensor]], stacked: bool, apart: Collection[str] = ()) -> dict[str, int]:
    """The size of every named axis of these signals. stacked: whether all have [S] in front. apart: axes whose sizes
    may differ.

    Raises `BadInput` where a signal has other axes than the table says or one of size 0, and where two signals
    disagree: then both are named, with their shapes.
    """
    found: dict[str, tuple[int, str]] = {}
    for name, value in signals:
        axes = ["S"] * stacked + SIGNALS[name].axes
        own, wanted = f"{name} {list(value.shape)}", f"[{', '.join(axes)}]"
        if value.ndim != len(axes):
            more = (
                "; [S] stands in front of all signals or of none" if stacked else ", or that of all with [S] in front"
            )
            raise BadInput(f"{own} does not fit: expected {wanted}{more}.")
        for axis, size in zip(axes, value.shape, strict=True):
            if size == 0:
                raise BadInput(f"{own} is empty: it has no {AXES[axis]} ({axis} = 0 of {wanted}).")
            first, other = found.setdefault(axis, (size, own))
            if first != size and axis not in apart:
                raise BadInput(
                    f"{other} and {own} disagree on {axis}, the {AXES[axis]}: {first} and {size}. Expected "
                    f"{SIGNALS[other.split()[0]].shape} and {SIGNALS[name].shape}."
                )
    return {axis: size for axis, (size, _) in found.items()}
