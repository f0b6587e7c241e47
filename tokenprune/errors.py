"""The errors that tokenprune raises on purpose. Each message names the input and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TokenpruneError(Exception):
    """Base of every error raised on purpose."""


class Unsupported(TokenpruneError):
    """A model, cache or way of running that cannot be pruned correctly, so it is refused."""


class BadInput(TokenpruneError, ValueError):
    """An argument out of range, an unknown name, or a file that cannot be used."""


class MissingSignal(TokenpruneError):
    """A method reads a signal that this model or this call did not provide."""


def unknown(kind: str, name: object, known: Iterable[str], also: Iterable[str] = ()) -> BadInput:
    """Error for an unknown name that shows the nearest one of `known` and `also`, or all that are `known`."""
    known = sorted(known)
    text = repr(name) if len(repr(name)) <= 80 else f"{repr(name)[:80]}..."
    near = difflib.get_close_matches(str(name)[:80], [*known, *also], n=1)
    mend = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known) or 'none'}."
    return BadInput(f"Unknown {kind} {text}. {mend}")
