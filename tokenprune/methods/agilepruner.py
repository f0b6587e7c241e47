"""AgilePruner: attention first, with a margin around what was chosen that grows with the picture's complexity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import cosine_distance
from tokenprune.core.selection import Selection, gather_rows, ranked
from tokenprune.methods.base import Method, View, keep_option, option, within
from tokenprune.methods.origin import Difference, Origin
from tokenprune.methods.signals import Need


def effective_rank(x: Tensor) -> Tensor:
    """exp(entropy of the normalised singular values) of x [S, n, c]; [S] (Roy and Vetterli, 2007)."""
    x = x.double()
    gram = x @ x.mT if x.shape[1] < x.shape[2] else x.mT @ x
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    q = singular / singular.sum(-1, keepdim=True).clamp(min=1e-12)
    return torch.xlogy(q, q).sum(-1).neg().exp()


@dataclass(frozen=True)
class AgilePruner(Method):
    """AgilePruner (ICLR 2026, arXiv 2603.01236).

    Tokens are visited by falling encoder attention. A visited token is kept, and every candidate whose cosine distance
    to it is below tau leaves; tau = 0.01 i erank / erank_average, at most `tau_max`, for the i-th token kept. erank is
    the effective rank of the encoder features: simple pictures give small margins and follow attention, complex ones
    spread out. Where the candidates run out, the most attended of the others fill up.

    No code was published. Our reading: i counts kept tokens from 1, `erank_average` is 106 (the paper's value for POPE;
    it gives 78 for OCR pictures), `tau_max` is 0.5, and the filling up.
    """

    name: ClassVar[str] = "agilepruner"
    paper: ClassVar[str] = "arXiv 2603.01236"
    year: ClassVar[int] = 2026
    kind: ClassVar[str] = "attention, diversity"
    origin: ClassVar[Origin] = Origin(
        "paper", note="as its project page gives it; cvsp-lab/AgilePruner at 3df95a34 holds no code"
    )
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "candidates that run out are filled up by attention",
            "the budget is kept exactly; nothing is published on it",
        ),
    )

    keep: Keep = keep_option(0.111)
    erank_average: float = option(106.0, "effective rank of an average picture")
    tau_max: float = option(0.5, "largest margin, in cosine distance")
    source: str = option("cls", "whose attention counts: cls or received", choices=("cls", "received"))

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self.name, "erank_average", self.erank_average, 1.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("saliency", self.source), Need("vision_features"))

    def select(self, view: View) -> Selection:
        k, features = self.budget(view), view["vision_features"]
        step = 0.01 * effective_rank(features)[:, None] / self.erank_average
        attention = view["saliency"].float()
        order = ranked(attention)
        distance = cosine_distance(gather_rows(features, order))
        chosen = torch.zeros_like(order, dtype=torch.bool)
        free = torch.ones_like(chosen)
        for i in range(1, k + 1):
            candidates = torch.where(free.any(-1, keepdim=True), free, ~chosen)
            pick = candidates.long().argmax(-1, keepdim=True)
            chosen = chosen.scatter(1, pick, True)
            row = distance.gather(1, pick[..., None].expand(-1, 1, view.count)).squeeze(1)
            free &= (row >= (step * i).clamp(max=self.tau_max)) & ~chosen
        kept = ranked(chosen.long())[:, :k]
        return Selection(order.gather(1, kept).sort(dim=-1).values)
