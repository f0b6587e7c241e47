"""STAR: what tokens pay to each other before the LLM, what the text pays to them inside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection, top_k
from tokenprune.methods.base import Method, View, keep_option, option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class STAR(Method):
    """Our reading of STAR (Guo et al., arXiv 2505.12359): stage-wise attention-guided reduction.

    `phase="visual"`, before the LLM: A = softmax(V V^T / sqrt(d)) of the projected tokens, score = attention received,
    the mean over the rows. `phase="text"`, before layer K: C = softmax over the visual tokens of T V^T / sqrt(d) of
    hidden states, score = the mean over the text tokens T after the image. By name both run: before the LLM and before
    half of the layers, each keeping sqrt(keep), so that `keep` is what is left at the end.

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

    keep: Keep = keep_option(0.1, "what survives both phases: a fraction; of one phase: a fraction or a number")
    phase: str = option("visual", "visual: before the LLM; text: inside it", choices=("visual", "text"))

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("features"),) if self.phase == "visual" else (Need("hidden"), Need("text_hidden"))

    def schedule(self, layers: int) -> list[tuple[int, Method]]:
        middle = max(1, layers // 2)
        if self.phase == "text":
            return [(middle, self)]
        if isinstance(self.keep, int):
            return [(0, self)]
        half = self.keep**0.5
        return [(0, replace(self, keep=half)), (middle, replace(self, keep=self.keep, of="original", phase="text"))]

    def select(self, view: View) -> Selection:
        visual = view["features" if self.phase == "visual" else "hidden"].float()
        rows = visual if self.phase == "visual" else view["text_hidden"].float()
        scores = (rows @ visual.mT / visual.shape[-1] ** 0.5).softmax(-1).mean(1)
        return Selection(top_k(scores, self.budget(view)))
