"""A method at a place."""

from __future__ import annotations

from dataclasses import dataclass

from tokenprune.errors import BadInput, unknown
from tokenprune.methods.base import SCOPES, Method

DECODE = "decode"


@dataclass(frozen=True)
class Stage:
    """`method` applied before decoder layer `at` (0 = before the LLM), or at="decode": at every decoding step.

    start: of a decoding stage, the layer from which on only chosen visual tokens are attended to; it chooses by the
    layer before, which sees all of them. scope: what a budget counts in. `part` is every base image, tile grid or
    video by itself, `item` a picture with all its parts. The default is the method's own.
    """

    at: int | str
    method: Method
    scope: str = ""
    start: int | None = None

    def __post_init__(self) -> None:
        if self.at == DECODE or (isinstance(self.method, Method) and self.method.decodes):
            self._check_decoding()
            return
        if self.start is not None:
            raise BadInput(f"start={self.start!r} goes with at='decode': the layer from which on a step sees a choice.")
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

    def _check_decoding(self) -> None:
        if not isinstance(self.method, Method) or not self.method.decodes or self.at != DECODE:
            name = getattr(self.method, "name", repr(self.method))
            mend = f"Give it at={DECODE!r}." if self.at != DECODE else "Give it a layer, or take dycoke_kv or fastocr."
            raise BadInput(f"at={self.at!r} does not fit {name}, which works at {self._when()}. {mend}")
        if self.scope:
            raise BadInput(f"scope={self.scope!r} does not go with at={DECODE!r}: a step sees all visual tokens.")
        start = self.method.default_start if self.start is None else self.start
        if isinstance(start, bool) or not isinstance(start, int) or start < 1:
            raise BadInput(f"start={start!r} is not a layer that has one before it. Give a whole number from 1 on.")
        object.__setattr__(self, "start", start)

    def _when(self) -> str:
        decodes = isinstance(self.method, Method) and self.method.decodes
        return "every decoding step" if decodes else "prefill"


def staged(place: int | str | tuple[str, int], method: Method, scope: str = "") -> Stage:
    """The stage at a place of a method's schedule: a layer, "decode", or that with the layer to start from."""
    if isinstance(place, tuple):
        return Stage(place[0], method, scope, place[1])
    return Stage(place, method, scope)
