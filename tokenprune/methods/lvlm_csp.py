"""LVLM_CSP: few representatives in the early layers, all tokens in the middle, few again at the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection, top_k
from tokenprune.methods.base import Method, View, keep_option, option, source_option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need

PHASES = ("cluster", "scatter", "prune")


@dataclass(frozen=True)
class LVLMCSP(Method):
    """Our reading of LVLM_CSP (Chen et al., arXiv 2504.10854): clustering, scattering, pruning.

    `phase="cluster"`: only `keep` representatives go through the layers that follow, the others wait as they are:
    token i * floor(n / N) for the i-th of N (`choice="uniform"`), or the best attended by the encoder (`"saliency"`).
    `phase="scatter"`: those that waited come back. `phase="prune"`: the tokens that the last prompt token ([SEG] in
    LISA) attends to most stay. By name: cluster before the LLM (`clusters` of the tokens), scatter before a quarter of
    the layers, prune before half of them (`keep`).

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
    default_at: ClassVar[int] = 0

    keep: Keep = keep_option(0.1)
    phase: str = option("prune", "cluster: the others wait; scatter: they come back; prune: by attention", PHASES)
    clusters: float = option(0.25, "share of representatives where the phases run by name")
    choice: str = option("uniform", "representatives: uniform, random or saliency", ("uniform", "random", "saliency"))
    seed: int = option(0, "seed of the random choice")
    source: str = source_option("received", "whose attention is the saliency")

    @property
    def needs(self) -> tuple[Need, ...]:
        if self.phase == "prune":
            return (Need("attention_row"),)
        return (Need("saliency", self.source),) if (self.phase, self.choice) == ("cluster", "saliency") else ()

    @property
    def sets_aside(self) -> bool:
        return self.phase == "cluster"

    @property
    def recalls(self) -> bool:
        return self.phase == "scatter"

    def schedule(self, layers: int) -> list[tuple[int, Method]]:
        quarter, half = max(1, layers // 4), max(2, layers // 2)
        if self.phase != "prune":
            return [(0 if self.phase == "cluster" else quarter, self)]
        return [
            (0, replace(self, phase="cluster", keep=1.0 if self.keep == 1.0 else self.clusters)),
            (quarter, replace(self, phase="scatter", keep=1.0)),
            (half, replace(self, phase="prune")),
        ]

    def select(self, view: View) -> Selection:
        k = view.count if self.phase == "scatter" else self.budget(view)
        if self.phase == "prune":
            return Selection(top_k(view["attention_row"].float().mean(-2), k))
        if self.phase == "cluster" and self.choice == "saliency":
            return Selection(top_k(view["saliency"].float(), k))
        if self.phase == "cluster" and self.choice == "random":
            scores = torch.rand(view.count, generator=torch.Generator().manual_seed(self.seed))
            return Selection(top_k(scores, k).expand(view.spans, -1).to(view.device, non_blocking=True))
        index = torch.arange(k, device=view.device) * (view.count // max(k, 1))
        return Selection(index.expand(view.spans, -1))
