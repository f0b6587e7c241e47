"""VidCom2: unique frames get more tokens, unusual tokens stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import unit_rows
from tokenprune.core.frames import Frames, frame_means
from tokenprune.core.selection import Selection, ranks, top_k
from tokenprune.methods.base import BudgetMethod, View, fill_option, keep_option
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need

WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
TEMPERATURE = 0.01


@dataclass(frozen=True)
class VidCom2(BudgetMethod):
    """VidCom2 (Liu et al., EMNLP 2025, arXiv 2505.14454).

    On the half of the channels that vary least over all tokens, tokens are scaled to length 1. G(x, c) is the sum of
    exp(-|x - c|^2 / 2a) over a = 1/8, 1/4, 1/2, 1, 2. A frame's uniqueness is minus the mean over its tokens of G to
    the mean of the video; its share is keep * (1 + softmax(uniqueness / 0.01) - 1 / T), at most 1. A frame keeps the
    max(1, round(share * N)) tokens whose G to the video's mean plus G to the frame's mean is smallest.

    The published counts do not add up to the budget (`fill="none"`). By default what is missing goes to the most
    unusual tokens left, and what is too much comes off the most usual ones; every frame keeps one as long as k allows.
    """

    name: ClassVar[str] = "vidcom2"
    paper: ClassVar[str] = "arXiv 2505.14454"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "video"
    reads_grid: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "xuyang-liu16/VidCom2", "944a17d1")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("frames' counts add up to the budget", "the code's do not", {"fill": "none"}),
        Difference(
            "rows keep their separators where they are", "the code puts the newlines of a frame behind its tokens"
        ),
        RENUMBERED,
    )

    keep: Keep = keep_option(0.25)
    fill: str = fill_option("score")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("features"),)

    def choose(self, view: View) -> Selection:
        k, frames = self.budget(view), view.frames(self.name)
        video, frame = usualness(view["features"], frames)
        wanted = shares(video, frames, self.fraction(view)) * frames.present.sum(-1)
        counts = wanted.round().clamp(min=1).minimum(frames.present.sum(-1))
        unusual = (-(video + frame)).masked_fill(~frames.present, float("-inf"))
        rank = ranks(unusual)
        kept = frames.taken(rank < counts[..., None])
        if self.fill == "none":
            return Selection.of(kept)
        best = frames.taken(rank == 0)
        order = ranks(frames.taken(unusual))
        return Selection(top_k((kept.long() + best.long()) * view.count - order, k))


def usualness(features: Tensor, frames: Frames) -> tuple[Tensor, Tensor]:
    """float64 [S, T, N] each: G of every token to the mean of the video, and to the mean of its frame."""
    x = features.double()
    quiet = x.var(1).sort(dim=-1, stable=True).indices[:, : x.shape[-1] // 2 or 1]
    x = unit_rows(x.gather(2, quiet[:, None].expand(-1, x.shape[1], -1)))
    whole = frames.spread(x)
    video = x.mean(1)[:, None, None]
    frame = frame_means(whole, frames.present)[:, :, None]
    return _gaussian((whole - video).square().sum(-1)), _gaussian((whole - frame).square().sum(-1))


def shares(video: Tensor, frames: Frames, keep: float) -> Tensor:
    """float64 [S, T]: the fraction of its tokens that every frame keeps."""
    there = frames.present.sum(-1)
    unique = -(video * frames.present).sum(-1) / there.clamp(min=1)
    unique = unique.masked_fill(there == 0, float("-inf"))
    real = (there > 0).sum(-1, keepdim=True)
    share = keep * (1 + (unique / TEMPERATURE).softmax(-1) - 1 / real)
    return share.clamp(max=1) * (there > 0)


def _gaussian(square: Tensor) -> Tensor:
    return sum(((-square / (2 * a)).exp() for a in WIDTHS), torch.zeros_like(square))
