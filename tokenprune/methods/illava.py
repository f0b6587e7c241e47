"""iLLaVA: round by round inside the vision encoder, the least attended groups become part of one of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection, indices_of, mask_of, one_hot, order_of
from tokenprune.methods.base import BudgetMethod, Schedule, View, keep_option, option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.methods.place import Vision
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class ILLaVA(BudgetMethod):
    """The encoder's stages of iLLaVA (Hu et al., ICLR 2026, arXiv 2412.06263).

    A round lets the r groups go that receive least attention (mean over heads, queries and a group's patches) in the
    block before. The next one stays as the weighted mean of these r + 1, with weights r + 1, r, ..., 1 from the least
    attended to itself. There is a round behind each of `blocks`, all of the same r; `keep` is what the last one leaves.
    """

    name: ClassVar[str] = "illava"
    paper: ClassVar[str] = "arXiv 2412.06263"
    year: ClassVar[int] = 2024
    kind: ClassVar[str] = "encoder, merging"
    origin: ClassVar[Origin] = Origin("code", "hulianyuyy/iLLaVA", "4068149e")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("a round stands behind a block", "the code merges between its attention and its MLP"),
        Difference(
            "groups of patches go", "patches that are left would form groups of patches that do not lie together"
        ),
        Difference("the stages in the encoder alone", "those in the LLM were not read"),
    )
    needs: ClassVar[tuple[Need, ...]] = (Need("saliency", "received"),)

    keep: Keep = keep_option(0.5, "what survives the last round: a fraction of the tokens, or a number")
    blocks: tuple[int, ...] = option((5, 6, 7, 8), "encoder blocks behind which a round stands", low=0)

    def schedule(self, layers: int) -> Schedule:
        rounds = len(self.blocks)
        if isinstance(self.keep, int):
            return [(Vision(self.blocks[-1] + 1), self)]
        shares = [1 - number * (1 - self.keep) / rounds for number in range(1, rounds + 1)]
        places = [Vision(block + 1) for block in self.blocks]
        return [(at, replace(self, keep=share, of="original")) for at, share in zip(places, shares, strict=True)]

    def choose(self, view: View) -> Selection:
        n, r = view.count, view.count - self.budget(view)
        least = order_of(-view["saliency"].float())[:, : r + 1]
        gone, target = least[:, :r], least[:, r:]
        stays = ~mask_of(gone, n)
        index = indices_of(stays, n - r)
        share = torch.arange(r + 1, 0, -1, device=stays.device, dtype=torch.float32)
        share = (share / share.sum()).expand_as(least)
        mixture = torch.zeros(len(stays), n, device=stays.device).scatter(1, least, share)
        weights = one_hot(index, n)
        weights = torch.where((index == target)[..., None], mixture[:, None], weights)
        anchors = torch.where(stays, torch.arange(n, device=stays.device), target)
        return Selection(index, weights, anchors=anchors)
