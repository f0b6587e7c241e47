"""A method at a place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenprune.errors import BadInput, unknown
from tokenprune.methods.base import SCOPES, Method
from tokenprune.methods.place import DECODE, Decode, EncoderPlace, Layer, Place, in_encoder, place_of


@dataclass(frozen=True)
class Stage:
    """`method` applied at a place: before decoder layer `at` (0 = before the LLM, the same as `Layer(0)`), with
    at="decode" at every decoding step (with start=3 the same as `Decode(3)`), with at="pixels" or `Pixels()` before
    the vision encoder, with `Vision(8)` before its block 8.

    start: of a decoding stage, the layer from which on only chosen visual tokens are attended to; it chooses by the
    layer before, which sees all of them. scope: what a budget counts in. `part` is every base image, tile grid or
    video by itself, `item` a picture with all its parts. The default is the method's own.
    """

    at: Any
    method: Method
    scope: str = ""
    start: int | None = None

    def __post_init__(self) -> None:
        if in_encoder(self.at):
            self._set(at=place_of(self.at))
            self._check_encoder()
            return
        if isinstance(self.at, (Layer, Decode)):
            if self.start is not None:
                raise BadInput(f"start={self.start!r} does not go with at={self.at!r}, which says where it stands.")
            self._set(start=self.at.start, at=self.at.at)
        if self.at == DECODE or (isinstance(self.method, Method) and self.method.decodes):
            self._check_decoding()
            return
        if self.start is not None:
            raise BadInput(f"start={self.start!r} goes with at='decode': the layer from which on a step sees a choice.")
        Layer(self.at)
        if not isinstance(self.method, Method):
            raise BadInput(f"{self.method!r} is not a method. Write Stage(at, DivPrune(keep=0.1)).")
        if self.at < self.method.first_at:
            raise BadInput(
                f"at={self.at} is too early for {self.method.name}, which reads attention of the layer before it. "
                f"Give at={self.method.first_at} or later."
            )
        self._check_signals()
        if self.at and self.method.merges_in == "encoder":
            raise BadInput(f"merge_in='encoder' of {self.method.name} works before the LLM, at=0, not {self.at}.")
        self._set(scope=self.scope or self.method.scope)
        if self.scope not in SCOPES:
            raise unknown("scope", self.scope, SCOPES)

    @property
    def place(self) -> Place:
        """Where it stands, as a type: `at` and `start` are how people write it."""
        if isinstance(self.at, EncoderPlace):
            return self.at
        return Layer(self.at) if self.start is None else Decode(self.start)

    @property
    def layer(self) -> int:
        """Of a stage of the prefill, the decoder layer from which on the LLM misses what it drops."""
        return self.at if isinstance(self.place, Layer) else 0

    def _check_encoder(self) -> None:
        if not isinstance(self.method, Method):
            raise BadInput(f"{self.method!r} is not a method. Write Stage(Pixels(), Uniform(keep=0.5)).")
        if self.start is not None or self.scope:
            raise BadInput(f"start= and scope= do not go with a stage {self.at}, which counts in pictures and frames.")
        self._check_signals()

    def _check_signals(self) -> None:
        lacking = self.method.lacks_at(self.place)
        if lacking:
            raise BadInput(f"{self.method.name} cannot stand {self.place}: {lacking}")

    def _check_decoding(self) -> None:
        if not isinstance(self.method, Method) or not self.method.decodes or self.at != DECODE:
            name = getattr(self.method, "name", repr(self.method))
            mend = f"Give it at={DECODE!r}." if self.at != DECODE else "Give it a layer, or take dycoke_kv or fastocr."
            raise BadInput(f"at={self.at!r} does not fit {name}, which works at {self._when()}. {mend}")
        if self.scope:
            raise BadInput(f"scope={self.scope!r} does not go with at={DECODE!r}: a step sees all visual tokens.")
        self._set(start=Decode(self.method.default_start if self.start is None else self.start).start)

    def _when(self) -> str:
        decodes = isinstance(self.method, Method) and self.method.decodes
        return "every decoding step" if decodes else "prefill"

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)
