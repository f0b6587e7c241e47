"""Token Transforming: every kept token becomes a mixture of all tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.core.diversity import unit_rows
from tokenprune.core.selection import Selection, gather_rows, top_k
from tokenprune.errors import BadInput
from tokenprune.methods.base import Method, View, option, source_option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class TokenTransforming(Method):
    """Our reading of Token Transforming (Zeng et al., arXiv 2506.05709): many-to-many compression.

    Y = M X: the k most attended tokens of the encoder stay, and row i of the row-stochastic M is the softmax over all
    tokens of cosine / temperature, cosines between kept token i and every token. Pruning is the special case of one-hot
    rows, merging that of averages.

    Only the abstract was at hand, and the repository holds no code: the choice of the tokens, the softmax and its
    temperature are ours, and so is the place, before the LLM (the paper's is inside vision transformers).
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise BadInput(f"temperature={self.temperature} of token_transforming must be above 0.")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("features"), Need("saliency", self.source))

    def select(self, view: View) -> Selection:
        k = self.budget(view)
        index = top_k(view["saliency"].float(), k)
        if k in (0, view.count):
            return Selection(index)
        unit = unit_rows(view["features"])
        return Selection(index, (gather_rows(unit, index) @ unit.mT / self.temperature).softmax(-1).float())
