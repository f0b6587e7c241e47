"""HiPrune: objects from a middle block of the encoder with what lies around them, the whole picture from a deep one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection, mask_of, ranks, to_device, top_k
from tokenprune.methods.base import Method, View, keep_option, option, source_option
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class HiPrune(Method):
    """HiPrune (Liu et al., ACL 2026, arXiv 2508.00553).

    Of k tokens round(`alpha` * k / 5) are anchors, the ones that receive most attention in the encoder block at `depth`
    of all blocks (CLIP: block 8 of 24; Qwen2.5-VL: 15 of 32, `depth=0.5`). With each come the tokens beside it, before
    and after it in its row and above and below it; at an edge, counted on through the rows as published. The others are
    those that receive most in the block whose output becomes the features. The encoder runs at full length.
    """

    name: ClassVar[str] = "hiprune"
    paper: ClassVar[str] = "arXiv 2508.00553"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "attention"
    reads_grid: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "Danielement321/HiPrune", "6e83a124")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("anchors and their neighbours never exceed k", "the code keeps more where alpha is near 1"),
        RENUMBERED,
    )

    keep: Keep = keep_option(0.333)
    alpha: float = option(0.1, "share of the kept tokens that are anchors and their neighbours", low=0.0, high=1.0)
    depth: float = option(1 / 3, "where the anchors' block stands, as a share of the encoder's", low=0.0, high=1.0)
    source: str = source_option("received")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("saliency_early", self.source, depth=self.depth), Need("saliency", self.source))

    def select(self, view: View) -> Selection:
        k = self.budget(view)
        anchors = top_k(view["saliency_early"].float(), min(round(self.alpha * k / 5), k))
        near = self._around(view, anchors).long() + mask_of(anchors, view.count).long()
        return Selection(top_k(near * view.count - ranks(view["saliency"].float()), k))

    def _around(self, view: View, anchors: Tensor) -> Tensor:
        """bool [S, n]: the tokens beside those at `anchors` [S, a]."""
        part = view.cells(self.name)[0].gather(1, anchors)
        widths = to_device([w for _, _, w in view.grids], anchors.device)[part]
        total = sum(t * h * w for t, h, w in view.grids)
        own = anchors if view.tokens is None else view.tokens.gather(1, anchors)
        steps = torch.stack([-torch.ones_like(widths), torch.ones_like(widths), -widths, widths], dim=-1)
        beside = (own[..., None] + steps).clamp(0, total - 1).flatten(1)
        found = mask_of(beside, total)
        return found if view.tokens is None else found.gather(1, view.tokens)
