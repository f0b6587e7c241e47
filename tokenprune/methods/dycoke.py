"""DyCoke, the temporal stage: in every four frames, one stays and the others keep what has changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import unit_rows
from tokenprune.core.frames import Frames
from tokenprune.core.selection import Selection, ranks, top_k
from tokenprune.methods.base import Method, View, keep_option, option
from tokenprune.signals.need import Need

GROUP = 4
NEW = -2.0  # below any cosine


@dataclass(frozen=True)
class DyCoke(Method):
    """DyCoke's token temporal merging (Tao et al., CVPR 2025, arXiv 2411.15024), which drops rather than merges.

    Of every four frames the first stays whole. The second is compared with the first, the fourth with the third and the
    third with the first, each in full; they keep the m tokens with the lowest cosine to the token at the same place. m
    follows from the budget: published, 30 % of a frame, which is 47.2 % of the video. `dycoke_kv` is the second stage.

    Below a quarter there is no room for whole frames: first frames then keep what differs most from the first frame of
    the group before, the others nothing. The published code leaves the third frame of the last group whole
    (`last="whole"`), drops frames beyond an even count, fails on four frames or fewer, and emits the tokens of a frame
    by similarity; here no frame is lost and the order is that of the prompt.
    """

    name: ClassVar[str] = "dycoke"
    paper: ClassVar[str] = "arXiv 2411.15024"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "video"

    keep: Keep = keep_option(0.472)
    last: str = option(
        "pruned", "the third frame of the last group: pruned, or whole as published", ("pruned", "whole")
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("features"),)

    def select(self, view: View) -> Selection:
        k, frames = self.budget(view), view.frames(self.name)
        number = torch.arange(frames.count, device=frames.cell.device)
        place = number % GROUP
        whole = place == 0
        if self.last == "whole":
            whole = whole | ((place == 2) & (number + GROUP > frames.count - 1))
        against = torch.where(place == 0, number - GROUP, torch.where(place == 2, number - 2, number - 1))
        similarity = _similarity(frames.spread(view["features"]), frames, against)
        rank = ranks(-similarity.masked_fill(~frames.present, float("inf")))
        # First whole frames, then the others, each of them one more token at a time, the most changed first.
        turn = frames.taken(rank + torch.where(whole, 0, frames.size)[:, None])
        order = turn * 2.0 + (frames.taken(similarity) + 2) / 4
        return Selection(top_k(-order, k))


def _similarity(x: Tensor, frames: Frames, against: Tensor) -> Tensor:
    """Cosine [S, T, N] of every token with that at the same place of frame `against` [T]; NEW where there is none."""
    unit = unit_rows(x)
    other = against.clamp(min=0)
    known = frames.present[:, other] & (against >= 0)[:, None]
    return torch.where(known, (unit * unit[:, other]).sum(-1), NEW)
