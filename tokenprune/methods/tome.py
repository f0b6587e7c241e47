"""Token merging: pairs of similar tokens become their mean, round by round."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from tokenprune.core.diversity import unit_rows
from tokenprune.core.merging import bipartite
from tokenprune.core.selection import Selection
from tokenprune.methods.base import BudgetMethod, Schedule, View, option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.methods.place import Vision
from tokenprune.signals.need import Need

METRICS = ("features", "keys")


@dataclass(frozen=True)
class ToMe(BudgetMethod):
    """ToMe (Bolya et al., ICLR 2023, arXiv 2210.09461), on the projected embeddings before the LLM, or with
    metric="keys" inside the vision encoder, as published.

    A round compares every second token with the ones between (cosine) and merges the most similar pairs into their
    mean, weighted by how many tokens each stands for. A round can merge at most half of the tokens, so there are as
    many rounds as the budget needs. Inside the encoder a round stands before each block up to `until`, all of the same
    number of pairs; it compares the mean key of a group's patches in the block before, before rotation, and later
    blocks attend to a mean as to all groups that it stands for.
    """

    name: ClassVar[str] = "tome"
    paper: ClassVar[str] = "arXiv 2210.09461"
    year: ClassVar[int] = 2023
    kind: ClassVar[str] = "merging"
    origin: ClassVar[Origin] = Origin("paper")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "projected tokens are merged before the language model by default",
            "so that it runs with encoders that work in windows; metric='keys' is the paper's",
        ),
        Difference("with metric='keys' a round stands before a block", "the paper merges between attention and MLP"),
        Difference("with metric='keys' groups merge, patch by patch", "mergers need all patches of a token"),
        Difference("tokens stay in their order", "so from the second round on other tokens are every second one"),
    )

    metric: str = option(
        "features", "what is compared: projected embeddings before the LLM, or keys inside the encoder", METRICS
    )
    until: int = option(12, "with keys, the last encoder block before which a round stands", low=1)
    proportional: bool = option(True, "with keys, whether blocks attend to a mean as to all that it stands for")

    @property
    def needs(self) -> tuple[Need, ...]:
        if self.metric == "features":
            return (Need("features"),)
        return (Need("vision_keys"), Need("vision_sizes"))

    @property
    def weighs_sizes(self) -> bool:
        return self.metric == "keys" and self.proportional

    def schedule(self, layers: int) -> Schedule:
        if self.metric == "features":
            return super().schedule(layers)
        if not isinstance(self.keep, float):
            return [(Vision(self.until), self)]
        shares = [1 - number * (1 - self.keep) / self.until for number in range(1, self.until + 1)]
        return [(Vision(at), replace(self, keep=share, of="original")) for at, share in enumerate(shares, 1)]

    def choose(self, view: View) -> Selection:
        inside = self.metric == "keys"
        x, k, n = view["vision_keys" if inside else "features"].float(), self.budget(view), view.count
        index = view.first(n).index
        weights: torch.Tensor | None = None
        sizes = view["vision_sizes"].float() if inside else torch.ones(view.spans, n, device=x.device)
        while index.shape[1] > k:
            count = index.shape[1]
            stays, share = bipartite(unit_rows(x), min(count - k, (count + 1) // 2), sizes)
            sizes = (share > 0).float() @ sizes[..., None]
            sizes, x = sizes.squeeze(-1), share @ x
            index = index.gather(1, stays)
            weights = share if weights is None else share @ weights
        assert weights is not None, "BudgetMethod settles k = n"
        return Selection(index, weights, anchors=index.gather(1, weights.argmax(1)))
