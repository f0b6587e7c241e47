"""CDPruner: a determinantal point process conditioned on the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import greedy_dpp, unit_rows
from tokenprune.core.selection import Selection
from tokenprune.errors import BadInput
from tokenprune.methods.base import Method, View, keep_option, option
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class CDPruner(Method):
    """CDPruner (Zhang et al., NeurIPS 2025, arXiv 2506.10967).

    Kernel diag(r) S diag(r), S the cosines of the projected tokens, r their relevance to the question; greedy MAP
    inference picks k tokens. Relevance with `relevance="clip"`: the negated cosine of CLIP's image embedding of a patch
    and its text embedding of the question, mean over pieces of the question. With `relevance="llm"`: the cosine of the
    projected token and the mean input embedding of the text after the image. No checkpoint of a vision-language model
    holds CLIP's text tower: bring both embeddings with `run.give(clip_image=..., clip_text=...)`.
    r = (rel - min + 1e-6) / (max - min), with min and max over all crops of a picture (`range="picture"`, as published)
    or over each (`range="span"`). theta: in (0, 1), r <- exp(theta / (2 (1 - theta)) r), a variant of the code; 0 is
    off.

    The published code goes on with NaN once the kernel's rank is used up and keeps fewer tokens; here the most relevant
    ones fill up. Equal relevance everywhere divides by 0 there and counts as 1 here.
    """

    name: ClassVar[str] = "cdpruner"
    paper: ClassVar[str] = "arXiv 2506.10967"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "diversity, text-guided"
    origin: ClassVar[Origin] = Origin("code", "Theia-4869/CDPruner", "9541616c")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "relevance is taken from the language model's embeddings by default",
            "no checkpoint of such a model holds CLIP's text tower",
            {"relevance": "clip"},
        ),
        Difference(
            "once the kernel's rank is used up, the most relevant tokens fill up",
            "the code goes on with NaN and keeps fewer",
        ),
        Difference("equal relevance everywhere counts as 1", "the code divides by 0"),
        RENUMBERED,
    )

    keep: Keep = keep_option(0.111)
    relevance: str = option(
        "llm", "what is compared with the question: clip or llm embeddings", choices=("clip", "llm")
    )
    range: str = option("picture", "relevance is scaled over a picture or over each span", choices=("picture", "span"))
    theta: float = option(0.0, "weight of the relevance in (0, 1); 0 is the published rule")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.theta < 1:
            raise BadInput(f"theta={self.theta} of cdpruner must be 0 (off) or below 1.")

    @property
    def needs(self) -> tuple[Need, ...]:
        if self.relevance == "clip":
            return (Need("features"), Need("clip_image"), Need("clip_text"))
        return (Need("features"), Need("text_embeddings"))

    @property
    def together(self) -> bool:
        return self.range == "picture"

    def select(self, view: View) -> Selection:
        unit = unit_rows(view["features"])
        r = self._relevance(view, unit).to(unit.dtype)
        kernel = r[..., None] * (unit @ unit.mT) * r[:, None]
        return Selection(greedy_dpp(kernel, self.budget(view), r).sort(dim=-1).values)

    def _relevance(self, view: View, unit: Tensor) -> Tensor:
        if self.relevance == "clip":
            image, text = unit_rows(view["clip_image"]), unit_rows(view["clip_text"])
            raw = -(image @ text.mT).mean(-1)
        else:
            question = unit_rows(view["text_embeddings"].float().mean(1, keepdim=True)).to(unit.dtype)
            raw = (unit @ question.mT).squeeze(-1)
        axes = None if self.range == "picture" else -1
        low = raw.min() if axes is None else raw.amin(-1, keepdim=True)
        high = raw.max() if axes is None else raw.amax(-1, keepdim=True)
        r = torch.where(high > low, (raw - low + 1e-6) / (high - low).clamp(min=1e-12), torch.ones_like(raw))
        return torch.exp(self.theta / (2 * (1 - self.theta)) * r) if self.theta else r
