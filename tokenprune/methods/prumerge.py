"""PruMerge: outliers of the CLS attention stay and take in the tokens most like them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection, gather_rows, mask_of, one_hot, ranks, to_device
from tokenprune.methods.base import BudgetMethod, View, keep_option, merge_option, option, source_option
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class PruMerge(BudgetMethod):
    """LLaVA-PruMerge and PruMerge+ (Shang et al., ICCV 2025, arXiv 2403.15388).

    Attention a is the CLS row of the encoder's last layer, all heads' products summed before the softmax. With
    keep=None the number of tokens is that of the outliers, a above Q3 + 1.5 (Q3 - Q1), and one more; else k, that one
    included. The best attended stay; `plus` adds evenly spaced ones (every int(int(1 / ratio) / 3)-th; with a budget,
    three for each attended one). A kept token becomes itself plus the sum of a_j x_j over the `neighbours` tokens with
    the most similar keys, and one more token is the sum of a_j x_j over all that are dropped, at the place of the best
    attended of these. Weights are not normalised, as published.

    The published code takes its percentiles over the whole batch, fails without outliers or with more than a third of
    them, never adds the last token, and sorts by attention. It merges before the projector (`merge_in="encoder"`, for
    LLaVA and LLaVA-NeXT), which by default is done with the projected tokens. `source="received"` reads the layer of
    the features, for encoders without CLS.
    """

    name: ClassVar[str] = "prumerge"
    paper: ClassVar[str] = "arXiv 2403.15388"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "attention, merging"
    origin: ClassVar[Origin] = Origin("code", "42Shawn/LLaVA-PruMerge", "097c0411")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "projected tokens are mixed by default",
            "not every projector takes tokens one by one",
            {"merge_in": "encoder"},
        ),
        Difference("outliers are counted in each picture", "the code takes its percentiles over the whole batch"),
        Difference(
            "tokens come in the order of the prompt, and the last one can be drawn",
            "the code sorts by attention and never adds the last token",
        ),
        Difference("no outliers, or more than a third of them, are served", "the code fails"),
        Difference(
            "as many stay as there are outliers", "the code goes through their share of n, which loses one for a few n"
        ),
        RENUMBERED,
    )
    adaptive: ClassVar[bool] = True
    waits: ClassVar[str] = "how many outliers there are follows from the attention"

    keep: Keep | None = keep_option(
        None, "what survives: a fraction, a number, or None for as many as there are outliers"
    )
    plus: bool = option(False, "PruMerge+: add evenly spaced tokens")
    neighbours: int = option(32, "tokens that each kept one takes in", low=0)
    merge_in: str = merge_option()
    source: str = source_option("cls")

    @property
    def needs(self) -> tuple[Need, ...]:
        before = (Need("vision_features"),) if self.merge_in == "encoder" else ()
        if self.source == "cls":
            return (Need("saliency", "joint"), Need("vision_keys", "last"), *before)
        return (Need("saliency", "received"), Need("vision_keys"), *before)

    @property
    def merges_in(self) -> str:
        return self.merge_in

    def choose(self, view: View) -> Selection:
        attention, n = view["saliency"].float(), view.count
        kept = self._keep(view, attention)
        rest = attention.masked_fill(kept, float("-inf"))
        extra = one_hot(rest.argmax(-1), n).bool() & ~kept
        chosen = Selection.of(kept | extra)
        index = chosen.index
        keys = functional.normalize(view["vision_keys"].float(), dim=-1)
        likeness = gather_rows(keys, index) @ keys.mT
        likeness = likeness.scatter(2, index[..., None], float("-inf"))
        near = likeness.topk(min(self.neighbours, n - 1), dim=-1).indices
        own = one_hot(index, n)
        taken = mask_of(near, n) * attention[:, None]
        dropped = torch.where(kept[:, None], 0.0, attention[:, None])
        weights = torch.where(extra.gather(1, index)[..., None], dropped, own + taken)
        return replace(chosen, weights=weights)

    def _keep(self, view: View, attention: Tensor) -> Tensor:
        """bool [S, n]: the tokens that stay, without the one for all that are dropped."""
        n, rank = view.count, ranks(attention)
        number = torch.arange(n, device=attention.device)
        if self.keep is not None:
            k = self.budget(view) - 1
            top = rank < (k // 4 if self.plus else k)
            if not self.plus:
                return top
            others = (~top).long().cumsum(-1) - 1
            more, left = k - k // 4, n - k // 4
            spaced = (others * more // left) != ((others - 1) * more // left)
            return top | (~top & spaced)
        low, high = torch.quantile(attention, to_device([0.25, 0.75], attention.device), dim=-1)
        outliers = (attention > (high + 1.5 * (high - low))[:, None]).sum(-1, keepdim=True)
        outliers = outliers.clamp(min=1, max=n)
        top = rank < outliers
        if not self.plus:
            return top
        step = (n // outliers // 3).clamp(min=1)
        return top | (number % step == 0)
