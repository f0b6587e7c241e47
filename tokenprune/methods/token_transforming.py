"""Token Transforming: every kept token becomes a mixture of all tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.core.diversity import unit_rows
from tokenprune.core.selection import Selection, gather_rows, top_k
from tokenprune.errors import BadInput
from tokenprune.methods.base import Method, Schedule, View, option, source_option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.methods.place import Vision
from tokenprune.methods.tome import METRICS
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class TokenTransforming(Method):
    """Our reading of Token Transforming (Zeng et al., arXiv 2506.05709): many-to-many compression.

    Y = M X: the k most attended tokens of the encoder stay, and row i of the row-stochastic M is the softmax over all
    tokens of cosine / temperature, cosines between kept token i and every token. Pruning is the special case of one-hot
    rows, merging that of averages.

    With metric="keys" it stands inside the vision encoder, before block `block`, where the paper has it: cosines of the
    keys, and attention, of the block before.

    Only the abstract was at hand, and the repository holds no code: the choice of the tokens, the softmax and its
    temperature are ours, and so are the place before the LLM and the block inside the encoder.
    """

    name: ClassVar[str] = "token_transforming"
    paper: ClassVar[str] = "arXiv 2506.05709"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "attention, merging"
    origin: ClassVar[Origin] = Origin("abstract")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("the form of the matrix and its temperature", "neither was found: ours"),
    )

    temperature: float = option(0.05, "how far the mixture spreads; towards 0 it is pruning")
    source: str = source_option("received")
    metric: str = option(
        "features", "what is compared: projected embeddings before the LLM, or keys inside the encoder", METRICS
    )
    block: int = option(4, "with keys, the encoder block before which it stands", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise BadInput(f"temperature={self.temperature} of token_transforming must be above 0.")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("vision_keys" if self.metric == "keys" else "features"), Need("saliency", self.source))

    def schedule(self, layers: int) -> Schedule:
        return [(Vision(self.block), self)] if self.metric == "keys" else super().schedule(layers)

    def select(self, view: View) -> Selection:
        k = self.budget(view)
        index = top_k(view["saliency"].float(), k)
        if k in (0, view.count):
            return Selection(index)
        unit = unit_rows(view["vision_keys" if self.metric == "keys" else "features"])
        return Selection(index, (gather_rows(unit, index) @ unit.mT / self.temperature).softmax(-1).float())
