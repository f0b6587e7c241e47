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
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need

GROUP = 4
NEW = -2.0  # below any cosine
LAST = ("pruned", "whole")


@dataclass(frozen=True)
class DyCoke(Method):
    """DyCoke's token temporal merging (Tao et al., CVPR 2025, arXiv 2411.15024), which drops rather than merges.

    Of every four frames the first stays whole. The second is compared with the first, the fourth with the third and the
    third with the first, each in full; they keep the m tokens with the lowest cosine to the token at the same place.
    Published, m is int(`changed` * N): keep=none. With `keep` it follows from the budget; 47.2 % of the video is what
    the paper's 30 % of a frame come to. `dycoke_kv` is the second stage.

    Below a quarter there is no room for whole frames: first frames then keep what differs most from the first frame of
    the group before, the others nothing. The published code leaves a third frame that is the last but one whole
    (`last="whole"`; keep=none with it gives its output), drops the last frame of an odd number, fails on four frames or
    fewer, and emits the tokens of a frame by similarity; here no frame is lost and the order is that of the prompt.
    """

    name: ClassVar[str] = "dycoke"
    paper: ClassVar[str] = "arXiv 2411.15024"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "video"
    reads_grid: ClassVar[bool] = True
    adaptive: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "KD-TAO/DyCoke", "dd746349")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "keep is what survives", "the code prunes a share of the compared frames: `changed`", {"keep": None}
        ),
        Difference(
            "the third frame of the last group is thinned as the others are",
            "the code's loop ends one group early",
            {"last": "whole"},
        ),
        Difference(
            "frames beyond whole groups are treated as a shorter group",
            "the code deletes the last of an odd number and fails on four or fewer",
        ),
        Difference("tokens come in the order of the prompt", "the code emits those of a frame by rising similarity"),
        RENUMBERED,
    )

    keep: Keep | None = keep_option(0.472, "what survives; none: first frames, and `changed` of the others")
    changed: float = option(
        0.3, "share of its tokens that a compared frame keeps, where keep does not say", low=0.0, high=1.0
    )
    last: str = option("pruned", "a third frame that is the last but one: pruned, or whole as published", LAST)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("features"),)

    def select(self, view: View) -> Selection:
        frames = view.frames(self.name)
        number = torch.arange(frames.count, device=frames.cell.device)
        step = number % GROUP
        whole = step == 0
        if self.last == "whole":
            whole = whole | ((step == 2) & (number + 2 >= frames.count))
        against = torch.where(step == 0, number - GROUP, torch.where(step == 2, number - 2, number - 1))
        similarity = _similarity(frames.spread(view["features"]), frames, against)
        rank = ranks(-similarity.masked_fill(~frames.present, float("inf")))
        if self.keep is None:
            share = (frames.present.sum(-1).double() * self.changed).long()
            kept = whole[:, None] | (rank < share[..., None])
            return Selection.of(frames.taken(kept & frames.present))
        # First whole frames, then the others, each of them one more token at a time, the most changed first.
        turn = frames.taken(rank + torch.where(whole, 0, frames.size)[:, None])
        order = turn * 2.0 + (frames.taken(similarity) + 2) / 4
        return Selection(top_k(-order, self.budget(view)))


def _similarity(x: Tensor, frames: Frames, against: Tensor) -> Tensor:
    """Cosine [S, T, N] of every token with that at the same place of frame `against` [T]; NEW where there is none."""
    unit = unit_rows(x)
    other = against.clamp(min=0)
    known = frames.present[:, other] & (against >= 0)[:, None]
    return torch.where(known, (unit * unit[:, other]).sum(-1), NEW)
