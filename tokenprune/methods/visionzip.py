"""VisionZip: dominant tokens by encoder attention, and the others merged into contextual ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.nn import functional

from tokenprune.core.budget import Keep
from tokenprune.core.merging import in_order
from tokenprune.core.selection import Selection, gather_rows, indices_of, mask_of, one_hot, top_k
from tokenprune.methods.base import Method, View, keep_option, merge_option, option, source_option
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class VisionZip(Method):
    """VisionZip (Yang et al., CVPR 2025, arXiv 2412.04467).

    Of k tokens, C = round(k * contextual) are contextual and the others dominant: the ones that the CLS row of the
    penultimate encoder layer attends to most (`source="received"`: what all patches pay, for encoders without CLS). Of
    the m tokens left over, every floor(m / C)-th becomes a target; each other one goes to the target with the most
    similar key (cosine, keys averaged over heads), and a target becomes itself plus the mean of what came to it
    (`merge="sum"`, as published, which doubles its length) or the mean of them all (`merge="mean"`).

    The published code keeps the CLS token too, which these prompts have no place for; it appends the contextual tokens
    at the end, while here each stays at its target's place; it merges before the projector (`merge_in="encoder"`, for
    LLaVA and LLaVA-NeXT), which by default is done with the projected tokens. It fails where fewer tokens than C are
    left over: then those become dominant.
    """

    name: ClassVar[str] = "visionzip"
    paper: ClassVar[str] = "arXiv 2412.04467"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "attention, merging"
    origin: ClassVar[Origin] = Origin("code", "dvlab-research/VisionZip", "3151f6df")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("the CLS token is no visual token", "these prompts have no place for it"),
        Difference(
            "projected tokens are mixed by default",
            "not every projector takes tokens one by one",
            {"merge_in": "encoder"},
        ),
        Difference(
            "a contextual token stands at its target's place", "the code appends them at the end, which loses places"
        ),
        Difference("fewer tokens than contextual ones left over are dominant", "the code fails"),
        RENUMBERED,
    )

    keep: Keep = keep_option(0.111)
    contextual: float = option(0.15625, "share of the kept tokens that are contextual", low=0.0, high=1.0)
    merge: str = option("sum", "what a target becomes: sum (itself + mean of the others) or mean", ("sum", "mean"))
    merge_in: str = merge_option()
    source: str = source_option("cls")

    @property
    def needs(self) -> tuple[Need, ...]:
        before = (Need("vision_features"),) if self.merge_in == "encoder" else ()
        return (Need("saliency", self.source), Need("vision_keys"), *before)

    def with_attention_share(self, share: float) -> VisionZip:
        return replace(self, contextual=1 - share)

    @property
    def merges_in(self) -> str:
        return self.merge_in

    def select(self, view: View) -> Selection:
        k, n = self.budget(view), view.count
        count = min(round(k * self.contextual), k)
        dominant = top_k(view["saliency"].float(), k - count)
        if not count or k == n:
            return Selection(top_k(view["saliency"].float(), k))
        rest = indices_of(~mask_of(dominant, n), n - len(dominant[0]))
        keys = gather_rows(functional.normalize(view["vision_keys"].float(), dim=-1), rest)
        step = max(1, rest.shape[1] // count)
        chosen = torch.arange(0, rest.shape[1], step, device=rest.device)[:count]
        group = (keys @ keys[:, chosen].mT).argmax(-1)
        others = torch.ones(rest.shape[1], dtype=torch.bool, device=rest.device)
        others[chosen] = False
        members = one_hot(group, count).mT * others
        size = members.sum(-1, keepdim=True)
        targets = rest[:, chosen]
        own = one_hot(targets, n)
        members = torch.zeros_like(own).scatter(2, rest[:, None].expand(-1, count, -1), members)
        weights = own + members / size.clamp(min=1) if self.merge == "sum" else (own + members) / (size + 1)
        index, weights = in_order(
            torch.cat([dominant, targets], dim=1), torch.cat([one_hot(dominant, n), weights], dim=1)
        )
        return Selection(index, weights)
