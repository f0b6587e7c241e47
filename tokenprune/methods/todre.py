"""ToDRE: diverse tokens before the LLM, and none once their information has moved on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import cosine_distance, max_min, max_sum
from tokenprune.core.selection import Selection, ranks
from tokenprune.methods.base import Method, View, keep_option, option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.methods.signals import Need


@dataclass(frozen=True)
class ToDRE(Method):
    """ToDRE (Li et al., arXiv 2505.18757).

    `phase="diversity"`, after the encoder: greedy k-center (`objective="maxmin"`, version 1 of the paper) or greedy
    max-sum (`"maxsum"`, version 2) on cosine distances of the projected tokens. `phase="migration"`, late in the LLM:
    once the visual tokens together get less than `share` of what the last prompt token pays, their information has
    moved to the text, and only `keep` of them stay, the best attended (0: none); else all stay. By name it stands
    before the LLM, and with keep=0 before three quarters of the layers.

    No code was published: the first token (the one farthest from all others), the distance, the layer and the
    threshold of the second phase are our reading.
    """

    name: ClassVar[str] = "todre"
    paper: ClassVar[str] = "arXiv 2505.18757"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "diversity, staged"
    origin: ClassVar[Origin] = Origin("paper", note="version 2; no code was published")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("the share below which the second stage acts", "it was not found: ours"),
    )
    waits: ClassVar[str] = "whether the visual tokens go follows from the attention that they get"

    keep: Keep = keep_option(0.1)
    objective: str = option(
        "maxmin", "what is maximised: distance to the nearest, or to all chosen", ("maxmin", "maxsum")
    )
    phase: str = option(
        "diversity", "diversity: choose; migration: drop all once hardly attended to", ("diversity", "migration")
    )
    share: float = option(0.1, "migration: attention share of the visual tokens below which they go")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("features"),) if self.phase == "diversity" else (Need("attention_row"),)

    def schedule(self, layers: int) -> list[tuple[int, Method]]:
        if self.phase == "migration":
            return [(max(1, 3 * layers // 4), self)]
        late = replace(self, phase="migration", keep=1.0 if self.keep == 1.0 else 0)
        return [(0, self), (max(1, 3 * layers // 4), late)]

    def select(self, view: View) -> Selection:
        if self.phase == "migration":
            paid = view["attention_row"].float().mean(-2)
            return Selection.of((paid.sum(-1, keepdim=True) >= self.share) | (ranks(paid) < self.budget(view)))
        distance = cosine_distance(view["features"])
        start = distance.sum(-1)
        greedy = max_min if self.objective == "maxmin" else max_sum
        return Selection(greedy(distance, self.budget(view), start).sort(dim=-1).values)
