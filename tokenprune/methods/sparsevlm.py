"""SparseVLM: the visual words of the question rate the tokens; what is dropped is partly recycled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.merging import density_peaks, in_order, mean_weights
from tokenprune.core.selection import Selection, gather_rows, one_hot, order_of, ranks
from tokenprune.methods.base import Schedule, ScoreMethod, View, keep_option, option, scale_shares
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need

STAGES = {  # of 32 layers, at 192 tokens
    "1.5": ((3, 300 / 576), (7, 200 / 576), (16, 110 / 576)),
    "2": ((3, 300 / 576), (7, 200 / 576), (16, 118 / 576)),
}


@dataclass(frozen=True)
class SparseVLM(ScoreMethod):
    """SparseVLM (Zhang et al., ICML 2025, arXiv 2410.04417) and SparseVLM+.

    Raters are the text tokens that the image is most about: on the LLM's input embeddings, softmax over the text of V
    E^T (no scaling), mean over all visual tokens there were at first, strictly above the average text token. The score
    of a token is what the raters pay to it in the layer before the stage, mean over heads and raters. `version="1.5"`:
    the best tokens stay; of the dropped ones the int(recycle * dropped) + 1 best are clustered (density peaks) into a
    tenth as many, plus 1, and each cluster's mean goes on at the place of its centre. `version="2"` (SparseVLM+):
    attention is divided by what rotation alone does to all-ones vectors, the `heads` heads with most of the raters'
    attention count (14, whatever the model has, as in the code), and nothing is recycled. By name it stands after
    layers 2, 6 and 15 of 32 with the published budgets 300, 200, 110 (version 2: 118) of 576, scaled so that the first
    stage keeps `keep`.

    With `budget_of="total"` merged tokens count in `keep`; with `budget_of="published"` they come on top. The published
    code's tables know a few budgets only, its v1.5 puts merged tokens behind the kept ones and renumbers positions
    (`positions="compact"`), its noise on ties is left out, and where no text token is above the average (a prompt with
    one word of text), which ends in NaN there, all of them rate. The paper sums clusters and assigns by cosine; we
    follow the code (mean, Euclidean).
    """

    name: ClassVar[str] = "sparsevlm"
    paper: ClassVar[str] = "arXiv 2410.04417"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "text-guided, merging, staged"
    origin: ClassVar[Origin] = Origin("code", "Gumpest/SparseVLMs", "26a5f488")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("merged tokens count in the budget", "so that keep is what survives", {"budget_of": "published"}),
        Difference(
            "merged tokens stand at their centres' places",
            "the code puts them behind the kept ones, which loses places",
        ),
        Difference("any budget", "the code's tables know a few"),
        Difference("ties go to the lowest index", "the code draws noise for its clusters"),
        Difference(
            "clusters are averaged and joined by Euclidean distance",
            "so the code; the paper sums them and joins by cosine",
        ),
        RENUMBERED,
    )
    default_at: ClassVar[int] = 3

    keep: Keep = keep_option(300 / 576, "what survives the first stage: a fraction of the tokens, or a number")
    version: str = option("1.5", "1.5 (with recycling) or 2 (SparseVLM+)", choices=("1.5", "2"))
    heads: int = option(14, "heads that count in version 2: those that the raters' attention is largest in", low=1)
    recycle: float = option(0.3, "share of the dropped tokens that are recycled; 0: none", low=0.0, high=1.0)
    budget_of: str = option(
        "total", "whether merged tokens count in keep (total) or not (published)", ("total", "published")
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        common = (Need("features", "whole"), Need("text_embeddings"), Need("text_attention"))
        return (*common, Need("hidden")) if self.version == "1.5" else (*common, Need("rope_weight"))

    def schedule(self, layers: int) -> Schedule:
        if isinstance(self.keep, int):
            return [(min(3, layers - 1), self)]
        stages = STAGES[self.version]
        places = [max(i + 1, round(at * layers / 32)) for i, (at, _) in enumerate(stages)]
        shares = scale_shares(self.keep, tuple(share for _, share in stages))
        return [(at, replace(self, keep=share, of="original")) for at, share in zip(places, shares, strict=True)]

    def select(self, view: View) -> Selection:
        k, n = self.budget(view), view.count
        recycles = self.version == "1.5" and self.recycle > 0
        if not recycles or k in (0, n):
            return super().select(view)
        kept, clusters = self._split(k, n)
        order = order_of(self.score(view))
        candidates = order[:, kept : kept + self._pool(n - kept)]
        hidden = view["hidden"].float()
        centres, group = density_peaks(gather_rows(hidden, candidates), clusters, clusters)
        index = candidates.gather(1, centres)
        members = torch.full((view.spans, n), -1, device=order.device).scatter(1, candidates, group)
        weights = torch.cat([one_hot(order[:, :kept], n), mean_weights(index, members)], dim=1)
        return Selection(*in_order(torch.cat([order[:, :kept], index], dim=1), weights))

    def _split(self, k: int, n: int) -> tuple[int, int]:
        """Tokens kept as they are, and clusters."""
        if self.budget_of == "published":
            return (k, self._clusters(n - k))
        kept = max(j for j in range(k) if j + self._clusters(n - j) <= k) if self._clusters(n) <= k else 0
        return kept, min(self._clusters(n - kept), k - kept)

    def _pool(self, dropped: int) -> int:
        return min(int(self.recycle * dropped) + 1, dropped)

    def _clusters(self, dropped: int) -> int:
        return int(self._pool(dropped) / 10) + 1 if dropped else 0

    def score(self, view: View) -> Tensor:
        text = view["text_embeddings"].float()
        about = (view["features"].float() @ text.mT).softmax(-1).mean(1)
        raters = (about > about.mean(-1, keepdim=True)).float()
        raters = torch.where(raters.any(-1, keepdim=True), raters, 1.0)
        paid = view["text_attention"].float()
        if self.version == "1.5":
            return (paid.mean(1) * raters[..., None]).sum(1) / raters.sum(-1, keepdim=True)
        paid = paid / view["rope_weight"].float()[:, None] * raters[:, None, :, None]
        heads = ranks(paid.sum((-2, -1))) < self.heads
        return (paid * heads[..., None, None]).sum((1, 2)) / (heads.sum(-1) * raters.sum(-1))[:, None]
