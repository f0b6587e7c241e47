"""EVS: what differs from the frame before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokenprune.core.budget import Keep
from tokenprune.core.frames import same_patch_cosine
from tokenprune.methods.base import ScoreMethod, View, keep_option, option, rounding_option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need

FIRST = 255.0


@dataclass(frozen=True)
class EVS(ScoreMethod):
    """Efficient Video Sampling (Bagrov et al., 2025, arXiv 2510.14624; the rule of the engines that serve it).

    A token's score is 1 - its cosine with the token at the same place of the frame before; tokens of the first frame
    (and those whose predecessor an earlier stage removed) score 255 and stay first. The highest int(n * keep) stay, of
    equal scores the earliest.

    The engines never keep less than one frame's tokens; `least="frame"` does that too, above the budget if need be.
    Here k is k by default. The published weakness remains: a slow drift differs little from frame to frame.
    """

    name: ClassVar[str] = "evs"
    paper: ClassVar[str] = "arXiv 2510.14624"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "video"
    reads_grid: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "vllm-project/vllm", "094f1178", "vllm/multimodal/evs.py")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "k may be less than a frame", "the engines never keep less than the tokens of one frame", {"least": "frame"}
        ),
    )

    keep: Keep = keep_option(0.25)
    rounding: str = rounding_option("down")
    least: str = option("budget", "never fewer tokens than: budget, or one frame as published", ("budget", "frame"))

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("features"),)

    def budget(self, view: View) -> int:
        k = super().budget(view)
        return max(k, min(view.frames(self.name).size, view.count)) if self.least == "frame" else k

    def score(self, view: View) -> Tensor:
        frames = view.frames(self.name)
        change = 1 - same_patch_cosine(frames.spread(view["features"].float()))
        before = frames.present[:, :-1]
        change = torch.where(before, change.to(torch.float64), FIRST)
        return frames.taken(pad(change, (0, 0, 1, 0), value=FIRST))
