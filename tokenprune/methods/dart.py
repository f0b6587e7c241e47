"""DART: tokens least like a few pivots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import unit_rows
from tokenprune.core.selection import Selection, gather_rows, indices_of, mask_of, order_of
from tokenprune.errors import BadInput
from tokenprune.methods.base import Method, View, keep_option, option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class DART(Method):
    """DART (Wen et al., EMNLP 2025, arXiv 2502.11494): duplication matters more than importance.

    Before layer K: pivots are the `pivots` visual tokens and as many text tokens after the image whose keys of layer
    K-1 have the largest L1 norm over all heads. The visual pivots stay; then each pivot in turn takes the tokens that
    are left and least similar to it (cosine of layer K-1's output after the model's final norm), all pivots equally
    many, until k are kept (the first pivots one more where k does not divide).

    The published code goes through the pivots in the order of a Python set (`order` repeats one such order: places in
    the list of visual, then text pivots, by falling norm), keeps more than it was asked for, and fails near full
    budgets and with fewer text tokens than pivots. Keys are rotated, as in the code.
    """

    name: ClassVar[str] = "dart"
    paper: ClassVar[str] = "arXiv 2502.11494"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "diversity"
    origin: ClassVar[Origin] = Origin(
        "code", "xqy1111111/DART", "d6a5af6", "a copy with the model files of ZichenWen1/DART"
    )
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "pivots take their turns by the norm of their keys",
            "the code goes through a Python set; `order` repeats such an order",
        ),
        Difference("exactly k tokens stay", "the code keeps the pivots on top, and fails near full budgets"),
        Difference("fewer text tokens than pivots are all pivots", "the code fails"),
    )
    default_at: ClassVar[int] = 2

    keep: Keep = keep_option(0.229)
    pivots: int = option(4, "visual pivots, and text pivots", low=0)
    order: tuple[int, ...] = option((), "order in which pivots choose; empty: visual ones first, by norm")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("hidden", "normed"), Need("text_hidden", "normed"), Need("keys"), Need("text_keys"))

    def select(self, view: View) -> Selection:
        k, n = self.budget(view), view.count
        norms = view["keys"].float().abs().sum((1, 3))
        text_norms = view["text_keys"].float().abs().sum((1, 3))
        image = order_of(norms)[:, : min(self.pivots, k)]
        text = order_of(text_norms)[:, : self.pivots]
        hidden, texts = unit_rows(view["hidden"]), unit_rows(view["text_hidden"])
        pivots = torch.cat([gather_rows(hidden, image), gather_rows(texts, text)], dim=1)
        order = list(self.order) or list(range(pivots.shape[1]))
        if sorted(order) != list(range(pivots.shape[1])):
            raise BadInput(f"order={self.order} of dart must name each of the {pivots.shape[1]} pivots once, from 0.")
        likeness = pivots[:, order] @ hidden.mT
        taken = mask_of(image, n)
        quota, more = divmod(k - image.shape[1], max(len(order), 1))
        for i in range(len(order)):
            free = -likeness[:, i].masked_fill(taken, float("inf"))
            taken = taken.scatter(1, order_of(free)[:, : quota + (i < more)], True)
        return Selection(indices_of(taken, k))
