"""DivPrune: the most diverse subset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import cosine_distance, max_min
from tokenprune.core.selection import Selection
from tokenprune.methods.base import Method, View, keep_option
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class DivPrune(Method):
    """DivPrune (Alvar et al., CVPR 2025, arXiv 2503.02175): max-min diversity, before the LLM.

    Distance of two tokens: 1 - cosine of their projected embeddings. First the token farthest from its nearest
    neighbour, then greedily the token whose nearest chosen token is farthest (Algorithm 1). k = round(n * keep); the
    paper's operating point on LLaVA-1.5 is 0.098.

    The published code can choose a token again where duplicates make every distance 0, works in half precision, where
    near-duplicates come in random order, and reads batch element 0. Here a token is chosen once, distances are taken
    one precision above the input's, and every span is treated by itself.
    """

    name: ClassVar[str] = "divprune"
    paper: ClassVar[str] = "arXiv 2503.02175"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "diversity"
    origin: ClassVar[Origin] = Origin("code", "vbdi/divprune", "799e2d95")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("a token is chosen once", "the code repeats an index where duplicates make every distance 0"),
        Difference(
            "distances are taken one precision above the input's",
            "in half precision near-duplicates come in random order",
        ),
        Difference("every picture is treated by itself", "the code reads one picture of batch element 0"),
        RENUMBERED,
    )

    keep: Keep = keep_option(0.098)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("features"),)

    def select(self, view: View) -> Selection:
        picks = max_min(cosine_distance(view["features"]), self.budget(view))
        return Selection(picks.sort(dim=-1).values)
