"""How many tokens a `keep` means."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real

from tokenprune.errors import BadInput

Keep = int | float
ROUNDINGS = ("nearest", "down", "up")


def check_keep(keep: object) -> Keep:
    """Return `keep` if it can mean a budget at all, else raise `BadInput`.

    A float is a fraction of the span in (0, 1]; an int is a number of tokens, 0 drops them all.
    """
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise BadInput(f"keep={keep!r} is not a number. Give a fraction such as 0.1 or a token count such as 58.")
    if isinstance(keep, Integral):
        if int(keep) < 0:
            raise BadInput(f"keep={keep} is below 0. An int is a number of tokens; 0 drops them all.")
        return int(keep)
    fraction = float(keep)
    if math.isnan(fraction):
        raise BadInput("keep=nan is not a number. Give a fraction such as 0.1 or a token count such as 58.")
    if fraction <= 0:
        raise BadInput(
            f"keep={keep} keeps nothing. A float is a fraction of the tokens and must be above 0; to drop them all, "
            "give the int 0."
        )
    if fraction > 1:
        raise BadInput(
            f"keep={keep} is above 1. A float is a fraction of the tokens, at most 1.0; for a token count give an int."
        )
    return fraction


def n_keep(keep: Keep | None, n: int, rounding: str = "nearest") -> int:
    """Tokens kept of `n`: an int as it is; a fraction rounded, at least 1.

    rounding: `nearest` is half to even (FastV, DivPrune), `down` truncates (PyramidDrop, FEATHER), `up` is the ceiling
    (Light-ColPali).
    """
    keep = check_keep(keep)
    if isinstance(keep, int):
        if keep > n:
            raise BadInput(f"keep={keep} is more than the {n} visual tokens there are. Lower it, or give a fraction.")
        return keep
    to_whole: dict[str, Callable[[float], int]] = {"nearest": round, "down": int, "up": math.ceil}
    return max(1, to_whole[rounding](n * keep))
