"""EfficientVLA: task-critical tokens, and diverse ones beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import cosine_distance, max_min
from tokenprune.core.selection import Selection, ranked
from tokenprune.methods.base import Method, View, keep_option, option, within
from tokenprune.methods.origin import Origin
from tokenprune.methods.signals import Need


@dataclass(frozen=True)
class EfficientVLA(Method):
    """The visual selection of EfficientVLA (Yang et al., NeurIPS 2025, arXiv 2506.10100).

    Of k tokens, `key` of them are the ones that the last prompt token attends to most. Of the rest, `diverse` are those
    farthest from everything chosen (greedy max-min on cosine distances, seeded with the key tokens), and the others the
    next most attended.

    No code was published and the ratios were not found; the defaults are ours. The paper reads CogACT's attention at an
    early layer.
    """

    name: ClassVar[str] = "efficientvla"
    paper: ClassVar[str] = "arXiv 2506.10100"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "attention, diversity"
    origin: ClassVar[Origin] = Origin("paper", note="no code was published")
    default_at: ClassVar[int] = 2

    keep: Keep = keep_option(0.22)
    key: float = option(0.25, "share of the kept tokens that are key tokens")
    diverse: float = option(0.5, "share of the others that are chosen for diversity")

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self.name, "key", self.key, 0.0, 1.0)
        within(self.name, "diverse", self.diverse, 0.0, 1.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("attention_row"), Need("features"))

    def select(self, view: View) -> Selection:
        k = self.budget(view)
        order = ranked(view["attention_row"].float().mean(-2))
        key = min(k, max(1, round(k * self.key)))
        relevant = key + round((k - key) * (1 - self.diverse))
        chosen = order[:, :relevant]
        more = max_min(cosine_distance(view["features"]), k - relevant, seeds=chosen)
        return Selection(torch.cat([chosen, more], dim=1).sort(dim=-1).values)
