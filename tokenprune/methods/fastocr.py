"""FastOCR: a few focal layers look at everything at every step, the others at what these fixed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.core.budget import Keep
from tokenprune.methods.base import Schedule, keep_option, option, rounding_option
from tokenprune.methods.decoding import DecodingMethod
from tokenprune.methods.origin import Difference, Origin
from tokenprune.methods.place import Decode


@dataclass(frozen=True)
class FastOCR(DecodingMethod):
    """FastOCR (2026, arXiv 2605.17447): our reading, for only its abstract was at hand.

    At every step `focal` layers attend to all visual tokens; each chooses the int(n * keep) that its head-mean row
    attends to most, for the layers up to the next focal one. Layers before the first focal one look at what the step
    before chose last. Nothing is lost.

    Ours are which layers are focal (evenly spread, the first at a fifth of the depth), how they choose, and that every
    step chooses anew (`alike` above 1); the paper's reuse across steps is the part before the first focal layer.
    """

    name: ClassVar[str] = "fastocr"
    paper: ClassVar[str] = "arXiv 2605.17447"
    year: ClassVar[int] = 2026
    kind: ClassVar[str] = "decoding, OCR"
    origin: ClassVar[Origin] = Origin("abstract")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "which layers are focal", "the abstract does not say: evenly spread, the first at a fifth of the depth"
        ),
    )
    default_start: ClassVar[int] = 6
    reuses: ClassVar[bool] = True

    keep: Keep = keep_option(0.05, "which visual tokens a step looks at: a fraction, or a number of tokens")
    rounding: str = rounding_option("down")
    alike: float = option(2.0, "cosine with the step before from which on a step does not choose anew; above 1: never")
    focal: int = option(3, "layers that see everything and choose")

    def schedule(self, layers: int) -> Schedule:
        first = max(1, layers // 5)
        count = max(1, min(self.focal, layers - first))
        starts = [first + i * (layers - first) // count for i in range(count)]
        return [(Decode(start), self) for start in dict.fromkeys(starts)]
