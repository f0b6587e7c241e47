"""Where a stage stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tokenprune.errors import BadInput

DECODE, PIXELS, VISION = "decode", "pixels", "vision"


@dataclass(frozen=True)
class Pixels:
    """Before the vision encoder: what goes is chosen by pixels (or by no signal), and is never encoded."""

    start: ClassVar[None] = None

    @property
    def order(self) -> tuple[int, int]:
        """Places in the order of a pass."""
        return (0, 0)

    @property
    def block(self) -> int:
        """The encoder block that it stands before."""
        return 0

    @property
    def written(self) -> str:
        """As people write it."""
        return PIXELS

    def __str__(self) -> str:
        return "before the vision encoder"


@dataclass(frozen=True)
class Vision:
    """Before block `block` of the vision encoder; 0 is behind the patch embedding."""

    block: int
    start: ClassVar[None] = None

    def __post_init__(self) -> None:
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < 0:
            raise BadInput(
                f"vision: {self.block!r} is not a block of the vision encoder. Give a whole number from 0 on."
            )

    @property
    def order(self) -> tuple[int, int]:
        """Places in the order of a pass."""
        return (1, self.block)

    @property
    def written(self) -> str:
        """As people write it."""
        return f"{VISION}:{self.block}"

    def __str__(self) -> str:
        return f"before block {self.block} of the vision encoder"


@dataclass(frozen=True)
class Layer:
    """Before decoder layer `at`; 0 is before the LLM."""

    at: int
    start: ClassVar[None] = None

    def __post_init__(self) -> None:
        if isinstance(self.at, bool) or not isinstance(self.at, int) or self.at < 0:
            raise BadInput(f"at={self.at!r} is not a layer. Give a whole number; 0 is before the LLM.")

    @property
    def order(self) -> tuple[int, int]:
        """Places in the order of a pass."""
        return (2, self.at)

    def __str__(self) -> str:
        return f"before layer {self.at}" if self.at else "before the LLM"


@dataclass(frozen=True)
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

    @property
    def order(self) -> tuple[int, int]:
        """Places in the order of a pass."""
        return (3, self.start)

    def __str__(self) -> str:
        return f"at every decoding step from layer {self.start}"


EncoderPlace = Pixels | Vision
Place = EncoderPlace | Layer | Decode


def place_of(at: Any) -> Place:
    """The place that people write: k for `Layer(k)`, "pixels", "vision:8" or {"vision": 8} for `Vision(8)`."""
    if isinstance(at, Place):
        return at
    if at == PIXELS:
        return Pixels()
    if in_encoder(at):
        name, _, block = at.partition(":") if isinstance(at, str) else (*at, "", at.get(VISION))
        if name == VISION and isinstance(block, int):
            return Vision(block)
        if name == VISION and isinstance(block, str) and block.isdecimal():
            return Vision(int(block))
        raise BadInput(f"at={at!r} is no place. Give a layer, 'decode', 'pixels' or 'vision:8', say.")
    return Layer(at)


def in_encoder(at: Any) -> bool:
    """Whether what people write means a place before or inside the vision encoder."""
    vision = isinstance(at, dict) and len(at) == 1
    return isinstance(at, EncoderPlace) or at == PIXELS or vision or (isinstance(at, str) and at.startswith(VISION))
