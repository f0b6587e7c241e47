"""STAR: what tokens pay to each other before the LLM, what the text pays to them inside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.methods.base import Schedule, ScoreMethod, View, keep_option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class STAR(ScoreMethod):
    """Our reading of STAR (Guo et al., arXiv 2505.12359): stage-wise attention-guided reduction.

    Before the LLM: A = softmax(V V^T / sqrt(d)) of the projected tokens, score = attention received, the mean over the
    rows. Before half of the layers `star_text`, which asks what the text pays. Each keeps sqrt(keep), so that `keep` is
    what is left at the end.

    Only a review that quotes the formulas was at hand, and no code. As printed, both means run along the softmax axis
    and are constant; received attention is the usable reading. The split of the budget and the layer are ours. The
    paper also counts the answer's tokens, which do not exist yet at prefill.
    """

    name: ClassVar[str] = "star"
    paper: ClassVar[str] = "arXiv 2505.12359"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "attention, text-guided, staged"
    origin: ClassVar[Origin] = Origin("abstract", note="no code was read")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "attention received, not the mean that is printed",
            "as printed the mean runs along the softmax and is constant",
        ),
        Difference("the split of the budget and the layer", "neither was found: ours"),
    )

    keep: Keep = keep_option(0.1, "what survives both stages: a fraction; of the first alone: a number")
    needs: ClassVar[tuple[Need, ...]] = (Need("features"),)

    def schedule(self, layers: int) -> Schedule:
        if isinstance(self.keep, int):
            return [(0, self)]
        text = self.derive(STARText, keep=self.keep, of="original")
        return [(0, replace(self, keep=self.keep**0.5)), *text.schedule(layers)]

    def score(self, view: View) -> Tensor:
        visual = view["features"].float()
        return sum_received(visual, visual)


@dataclass(frozen=True)
class STARText(ScoreMethod, stage_of=STAR):
    """STAR inside the LLM: C = softmax over the visual tokens of T V^T / sqrt(d) of hidden states; a token's score is
    the mean over the text tokens T after the image."""

    name: ClassVar[str] = "star_text"

    keep: Keep = keep_option(0.1)
    needs: ClassVar[tuple[Need, ...]] = (Need("hidden"), Need("text_hidden"))

    def schedule(self, layers: int) -> Schedule:
        return [(max(1, layers // 2), self)]

    def score(self, view: View) -> Tensor:
        return sum_received(view["text_hidden"].float(), view["hidden"].float())


def sum_received(rows: Tensor, visual: Tensor) -> Tensor:
    """float32 [S, n]: what `visual` [S, n, d] receives from `rows` [S, m, d], the mean over these."""
    return (rows @ visual.mT / visual.shape[-1] ** 0.5).softmax(-1).mean(1)
