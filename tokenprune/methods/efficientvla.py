"""EfficientVLA: task-critical tokens, and diverse ones beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import unit_rows
from tokenprune.core.selection import Selection, gather_rows, mask_of, order_of
from tokenprune.methods.base import Method, View, keep_option, option
from tokenprune.methods.origin import Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class EfficientVLA(Method):
    """The visual selection of EfficientVLA (Yang et al., NeurIPS 2025, arXiv 2506.10100).

    Relevance of a token: what the instruction pays to it in the layer before the stage, mean over heads, summed over
    all text tokens after the image. Of k tokens, the `key` most relevant are key tokens. Of the k - `key` others,
    floor(alpha (k - key)) are the next most relevant; the rest are those least like the key tokens: the largest
    1 - max cosine to a key token, all taken in one go.

    No code was published; this follows the paper's text. It takes 4 to 8 key tokens (4 here) before CogACT's layer 2;
    with fewer tokens than that, all are key tokens. Which features the cosines are of is our reading: the projected
    tokens. Without key tokens (`key=0`) there is nothing to be unlike, and relevance decides alone.
    """

    name: ClassVar[str] = "efficientvla"
    paper: ClassVar[str] = "arXiv 2506.10100"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "attention, diversity"
    origin: ClassVar[Origin] = Origin("paper", note="no code was published")
    default_at: ClassVar[int] = 2

    keep: Keep = keep_option(0.22)
    key: int = option(4, "key tokens: the most relevant ones, which the diverse ones have to differ from", low=0)
    alpha: float = option(0.5, "share of the others that are chosen for relevance", low=0.0, high=1.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("text_attention"), Need("features"))

    def with_attention_share(self, share: float) -> EfficientVLA:
        return replace(self, alpha=share)

    def select(self, view: View) -> Selection:
        k, n = self.budget(view), view.count
        order = order_of(view.mean_over_heads("text_attention").sum(1))
        key = min(self.key, k)
        if not key:
            return Selection(order[:, :k].sort(dim=-1).values)
        relevant = order[:, : key + int(self.alpha * (k - key))]
        unit = unit_rows(view["features"])
        unlike = 1 - (unit @ gather_rows(unit, order[:, :key]).mT).amax(-1)
        more = order_of(unlike.masked_fill(mask_of(relevant, n), float("-inf")))[:, : k - relevant.shape[1]]
        return Selection(torch.cat([relevant, more], dim=1).sort(dim=-1).values)
