"""LVLM_CSP: few representatives in the early layers, all tokens in the middle, few again at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection, top_k
from tokenprune.errors import BadInput
from tokenprune.methods.base import Method, Schedule, ScoreMethod, View, keep_option, option, source_option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need

CHOICES = ("uniform", "random", "saliency")


@dataclass(frozen=True)
class LVLMCSP(ScoreMethod):
    """Our reading of LVLM_CSP (Chen et al., arXiv 2504.10854): clustering, scattering, pruning.

    Before the LLM `lvlm_csp_cluster` takes representatives (`clusters` of the tokens), and the others wait; before a
    quarter of the layers they come back (`lvlm_csp_scatter`); before half of them the `keep` tokens stay that the last
    prompt token ([SEG] in LISA) attends to most.

    Only the abstract and a review were at hand, and no code; neither layers nor the number of representatives were
    found: those are ours. The paper's random choice is `random` here, its segment-first choice needs a detector and is
    left out.
    """

    name: ClassVar[str] = "lvlm_csp"
    paper: ClassVar[str] = "arXiv 2504.10854"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "attention, staged"
    origin: ClassVar[Origin] = Origin("abstract", note="no code was published")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("layers and the number of representatives", "neither was found: ours"),
        Difference("no choice by the segment that comes first", "it needs a detector"),
    )

    keep: Keep = keep_option(0.1)
    clusters: float = option(0.25, "share of representatives in the early layers", low=0.0, high=1.0)
    choice: str = option("uniform", "representatives: uniform, random or saliency", CHOICES)
    seed: int = option(0, "seed of the random choice")
    source: str = source_option("received", "whose attention is the saliency")
    needs: ClassVar[tuple[Need, ...]] = (Need("attention_row"),)

    def schedule(self, layers: int) -> Schedule:
        clusters = self.derive(LVLMCSPCluster, keep=1.0 if self.keep == 1.0 else self.clusters)
        scatter = self.derive(LVLMCSPScatter, keep=1.0)
        return [*clusters.schedule(layers), *scatter.schedule(layers), (max(2, layers // 2), self)]

    def score(self, view: View) -> Tensor:
        return view.mean_over_heads("attention_row")


@dataclass(frozen=True)
class LVLMCSPCluster(Method, stage_of=LVLMCSP):
    """LVLM_CSP in the early layers: only `keep` representatives go through those that follow, the others wait as they
    are. Token i * floor(n / N) for the i-th of N (`choice="uniform"`), the best attended by the encoder (`"saliency"`),
    or `"random"` ones."""

    name: ClassVar[str] = "lvlm_csp_cluster"

    keep: Keep = keep_option(0.25)
    choice: str = option("uniform", "representatives: uniform, random or saliency", CHOICES)
    seed: int = option(0, "seed of the random choice")
    source: str = source_option("received", "whose attention is the saliency")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("saliency", self.source),) if self.choice == "saliency" else ()

    @property
    def sets_aside(self) -> bool:
        return True

    def select(self, view: View) -> Selection:
        k = self.budget(view)
        if self.choice == "saliency":
            return Selection(top_k(view["saliency"].float(), k))
        if self.choice == "random":
            scores = torch.rand(view.count, generator=torch.Generator().manual_seed(self.seed))
            return Selection(top_k(scores, k).expand(view.spans, -1).to(view.device, non_blocking=True))
        index = torch.arange(k, device=view.device) * (view.count // max(k, 1))
        return Selection(index.expand(view.spans, -1))


@dataclass(frozen=True)
class LVLMCSPScatter(Method, stage_of=LVLMCSP):
    """LVLM_CSP in the middle layers: the tokens that waited come back, all of them."""

    name: ClassVar[str] = "lvlm_csp_scatter"

    keep: Keep = keep_option(1.0, "1.0: nothing is dropped where tokens come back")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep != 1.0:
            raise BadInput(f"keep={self.keep!r} of {self.name} must be 1.0. Drop tokens at a stage behind it.")

    @property
    def recalls(self) -> bool:
        return True

    def schedule(self, layers: int) -> Schedule:
        return [(max(1, layers // 4), self)]

    def select(self, view: View) -> Selection:
        return view.first(view.count)
