"""HoloV: attention inside stretches of the picture, budgets by how lively they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection, ranks, top_k
from tokenprune.methods.base import Method, View, keep_option, option, source_option
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class HoloV(Method):
    """HoloV (Zou et al., NeurIPS 2025, arXiv 2510.02912).

    The tokens in raster order are cut into `crops` stretches (the first n mod crops are one longer). In a stretch, the
    variance v of a token's cosines to the others (its own counted as 0, around their mean, over size - 1) and its
    encoder attention A = 1000 a add up to A + 0.09 v mean|A| / mean|v|; their mean is the stretch's score. Budgets are
    the floors of the scores' shares of k, what is left over goes one each to the stretches with the largest budgets,
    and a stretch keeps its most attended tokens. `crops=0`: max(1, int(1024 / 576 * n / k)), as on Qwen2.5-VL.

    Where a budget is larger than its stretch, the published code pads with zeros; here the best attended tokens that
    are left fill up. Its output is sorted by attention, ours by place.
    """

    name: ClassVar[str] = "holov"
    paper: ClassVar[str] = "arXiv 2510.02912"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "attention, diversity"
    origin: ClassVar[Origin] = Origin("code", "obananas/HoloV", "1d2e65e9")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "the best attended tokens fill a stretch whose budget is larger than it is",
            "the code pads with zero tokens",
        ),
        Difference("tokens come in the order of the prompt", "the code sorts those of a stretch by attention"),
        RENUMBERED,
    )

    keep: Keep = keep_option(0.111)
    crops: int = option(16, "stretches; 0: by size, as on Qwen2.5-VL", low=0)
    source: str = source_option("cls")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("features"), Need("saliency", self.source))

    def select(self, view: View) -> Selection:
        n, k = view.count, self.budget(view)
        crops = min(n, self.crops or max(1, int(1024 / 576 * n / max(k, 1))))
        sizes = [n // crops + (i < n % crops) for i in range(crops)]
        longest = max(sizes)
        starts = torch.tensor([0, *sizes]).cumsum(0)[:-1]
        crop_token = (starts[:, None] + torch.arange(longest)).to(view.device, non_blocking=True)
        real = (torch.arange(longest) < torch.tensor(sizes)[:, None]).to(view.device, non_blocking=True)
        crop_token = crop_token.clamp(max=n - 1)
        attention = view["saliency"].float()
        unit = functional.normalize(view["features"].float(), dim=-1)[:, crop_token]
        cosine = (unit @ unit.mT).masked_fill(torch.eye(longest, dtype=torch.bool, device=unit.device), 0.0)
        pair = real[:, :, None] & real[:, None]
        size = real.sum(-1)[:, None]
        mean = (cosine * pair).sum(-1) / size
        spread = ((cosine - mean[..., None]).square() * pair).sum(-1) / (size - 1).clamp(min=1)
        scaled = 1000 * attention[:, crop_token]
        own = (scaled.abs() * real).sum(-1, keepdim=True) / size
        ratio = own / ((spread.abs() * real).sum(-1, keepdim=True) / size).clamp(min=1e-12)
        score = ((scaled + 0.09 * spread * ratio) * real).sum(-1) / size.squeeze(-1)
        share = score / score.sum(-1, keepdim=True).clamp(min=1e-12)
        budget = (share * k).floor().long()
        budget = budget + (ranks(budget) < k - budget.sum(-1, keepdim=True)).long()
        rank = ranks(attention[:, crop_token].masked_fill(~real, float("-inf")))
        kept = (rank < budget[..., None]) & real
        # Slots behind a stretch's end are False and add nothing, wherever they point.
        flat = torch.zeros(view.spans, n, dtype=torch.long, device=unit.device)
        flat.index_add_(1, crop_token.flatten(), kept.flatten(1).long())
        return Selection(top_k(flat * n - ranks(attention), k))
