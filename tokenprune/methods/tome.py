"""Token merging: pairs of similar tokens become their mean, round by round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenprune.core.diversity import unit_rows
from tokenprune.core.merging import bipartite
from tokenprune.core.selection import Selection
from tokenprune.methods.base import BudgetMethod, View
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class ToMe(BudgetMethod):
    """ToMe (Bolya et al., ICLR 2023, arXiv 2210.09461), on the projected embeddings before the LLM.

    A round compares every second token with the ones between (cosine) and merges the most similar pairs into their
    mean, weighted by how many tokens each stands for. A round can merge at most half of the tokens, so there are as
    many rounds as the budget needs. The paper merges inside the vision encoder, layer by layer, on the keys.
    """

    name: ClassVar[str] = "tome"
    paper: ClassVar[str] = "arXiv 2210.09461"
    year: ClassVar[int] = 2023
    kind: ClassVar[str] = "merging"
    origin: ClassVar[Origin] = Origin("paper")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "projected tokens are merged before the language model",
            "the paper merges inside the encoder, layer by layer, on the keys and with proportional attention",
        ),
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("features"),)

    def choose(self, view: View) -> Selection:
        x, k, n = view["features"].float(), self.budget(view), view.count
        index = view.first(n).index
        weights: torch.Tensor | None = None
        sizes = torch.ones(view.spans, n, device=x.device)
        while index.shape[1] > k:
            count = index.shape[1]
            stays, share = bipartite(unit_rows(x), min(count - k, (count + 1) // 2), sizes)
            sizes = (share > 0).float() @ sizes[..., None]
            sizes, x = sizes.squeeze(-1), share @ x
            index = index.gather(1, stays)
            weights = share if weights is None else share @ weights
        return Selection(index, weights)
