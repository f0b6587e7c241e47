"""ToDRE: diverse tokens before the LLM, and none once their information has moved on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import cosine_distance, max_min, max_sum
from tokenprune.core.selection import Selection, ranks
from tokenprune.methods.base import Method, Schedule, View, keep_option, option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class ToDRE(Method):
    """ToDRE (Li et al., arXiv 2505.18757), version 2 of the paper; version 1 with `objective="maxmin"`.

    Before the LLM: greedy max-sum on cosine distances of the projected tokens
    (`objective="maxsum"`), or greedy k-center (`"maxmin"`). The first token is the one that the CLS row attends to
    most, of a video the one of all its frames. k counts the base image and the tiles of a picture together. Encoders
    without CLS: version 2 starts at random; here `source="received"` starts at the token that the encoder's patches
    attend to most, `source="features"` at the one farthest from all others, which no attention is needed for.

    Before seven eighths of the layers `todre_migration`, with keep=0: no visual token is left once the information has
    moved to the text.

    No code was published; this follows the paper's text. `share` is ours.
    """

    name: ClassVar[str] = "todre"
    paper: ClassVar[str] = "arXiv 2505.18757"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "diversity, staged"
    scope: ClassVar[str] = "item"
    origin: ClassVar[Origin] = Origin("paper", note="version 2; no code was published")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("without CLS, `source` says which token is first", "the paper draws it; here nothing is drawn"),
        Difference("what visual tokens pay to the text is not asked", "under causal attention it is nothing"),
        Difference("the share below which the second stage acts", "it was not found: ours"),
    )
    waits: ClassVar[str] = "whether the visual tokens go follows from the attention that they get"

    keep: Keep = keep_option(0.1)
    objective: str = option(
        "maxsum", "what is maximised: distance to all chosen (version 2), or to the nearest", ("maxsum", "maxmin")
    )
    share: float = option(0.1, "attention share of the visual tokens below which they go in the end")
    source: str = option(
        "cls",
        "which token is first: best attended by cls, best received, or farthest from all (features)",
        ("cls", "received", "features"),
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        first = () if self.source == "features" else (Need("saliency", self.source),)
        return (Need("features"), *first)

    def schedule(self, layers: int) -> Schedule:
        migration = self.derive(ToDREMigration, keep=1.0 if self.keep == 1.0 else 0)
        return [(0, self), *migration.schedule(layers)]

    def select(self, view: View) -> Selection:
        distance = cosine_distance(view["features"])
        start = distance.sum(-1) if self.source == "features" else view["saliency"].float()
        greedy = max_min if self.objective == "maxmin" else max_sum
        return Selection(greedy(distance, self.budget(view), start).sort(dim=-1).values)


@dataclass(frozen=True)
class ToDREMigration(Method, stage_of=ToDRE):
    """ToDRE late in the LLM: visual tokens go once their information has moved on.

    Where the text tokens after the image pay less than `share` of their attention to the visual tokens (mean over heads
    and text tokens), only `keep` of them stay, the best attended (0, as published: none); else all stay. The paper asks
    the same of what visual tokens pay to the text; under causal attention they pay nothing to text after them, so that
    never decides.
    """

    name: ClassVar[str] = "todre_migration"
    scope: ClassVar[str] = "item"
    waits: ClassVar[str] = ToDRE.waits

    keep: Keep = keep_option(0.1, "what stays once they are hardly attended to")
    share: float = option(0.1, "attention share of the visual tokens below which they go")
    needs: ClassVar[tuple[Need, ...]] = (Need("text_attention"),)

    def schedule(self, layers: int) -> Schedule:
        return [(max(1, 7 * layers // 8), self)]

    def select(self, view: View) -> Selection:
        paid = view["text_attention"].float().mean((1, 2))
        return Selection.of((paid.sum(-1, keepdim=True) >= self.share) | (ranks(paid) < self.budget(view)))
