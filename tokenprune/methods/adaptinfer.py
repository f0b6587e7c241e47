"""AdaptInfer: text tokens weigh each other before they weigh the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.errors import BadInput
from tokenprune.methods.base import Schedule, ScoreMethod, View, keep_option, option, scale_shares
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need

STAGES = ((1, 133 / 576), (10, 27 / 576), (20, 3 / 576))  # of 32 layers, at 64 tokens


@dataclass(frozen=True)
class AdaptInfer(ScoreMethod):
    """AdaptInfer (arXiv 2508.06084): dynamic text guidance.

    At a pruning layer, for each head: S = A + A^T - diag(A) of the text's attention to itself, blended with the mean of
    S over all heads, rows and columns (`blend` = 1: not at all); the weight of a text token is the sum of its column of
    S; the score of a visual token is the weighted sum of what the text pays to it, summed over heads. The layer runs in
    full and its output is pruned, so a stage stands before the layer after it. By name it stands after layers 1, 10 and
    20 of 32 (at equal depth in other models) with the published 64-token budgets 133, 27 and 3 of 576 scaled so that
    the first stage keeps `keep`.

    The published tables count the pruning layer as already pruned and never keep all tokens; the report counts what
    ran. `search_layers` finds the layers for another model.
    """

    name: ClassVar[str] = "adaptinfer"
    paper: ClassVar[str] = "arXiv 2508.06084"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "text-guided, staged"
    origin: ClassVar[Origin] = Origin("code", "weiczh02/AdaptInfer-base", "9dac67c0")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("a budget can be all tokens", "the published tables stop one token short, which keep=1.0 must not"),
        RENUMBERED,
    )
    default_at: ClassVar[int] = 2

    keep: Keep = keep_option(133 / 576, "what survives the first stage: a fraction of the tokens, or a number")
    blend: float = option(1.0, "weight of S against its mean", low=0.0, high=1.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("text_attention"), Need("text_self_attention"))

    def schedule(self, layers: int) -> Schedule:
        if isinstance(self.keep, int):
            return [(min(2, layers - 1), self)]
        places = [1 + round(at * layers / 32) for at, _ in STAGES]
        places = [max(place, i + 1) for i, place in enumerate(places)]
        shares = scale_shares(self.keep, tuple(share for _, share in STAGES))
        return [(at, replace(self, keep=share, of="original")) for at, share in zip(places, shares, strict=True)]

    def score(self, view: View) -> Tensor:
        own = view["text_self_attention"].float()
        symmetric = own + own.mT - torch.diag_embed(own.diagonal(dim1=-2, dim2=-1))
        mean = symmetric.mean((-3, -2, -1), keepdim=True)
        weight = (self.blend * symmetric + (1 - self.blend) * mean).sum(-2)
        return torch.einsum("shm,shmn->sn", weight, view["text_attention"].float())


def change_points(curve: torch.Tensor, count: int = 3) -> list[int]:
    """Layers after which the slope of a cumulative curve changes: the best piecewise-linear fit with `count` breaks.

    curve: float [layers], cumulative attention of the text to the image (AdaptInfer). Least squares over
    all placements by dynamic programming; each piece has at least two layers. Raises `BadInput` where the curve is too
    short.
    """
    values = curve.double()
    n, pieces = len(values), count + 1
    if n < 2 * pieces:
        raise BadInput(f"{count} change points need a curve of at least {2 * pieces} layers; this one has {n}.")
    cost = torch.full((n + 1, n + 1), float("inf"), dtype=torch.float64)
    for a in range(n):
        for b in range(a + 2, n + 1):
            x = torch.arange(a, b, dtype=torch.float64)
            design = torch.stack([x, torch.ones_like(x)], dim=1)
            fit = design @ torch.linalg.lstsq(design, values[a:b, None]).solution
            cost[a, b] = (fit.squeeze(1) - values[a:b]).square().sum()
    best = [[float("inf")] * (n + 1) for _ in range(pieces + 1)]
    cut = [[0] * (n + 1) for _ in range(pieces + 1)]
    best[0][0] = 0.0
    for piece in range(1, pieces + 1):
        for b in range(1, n + 1):
            # A layer where two lines meet fits both; it ends the first one.
            options = [(round(best[piece - 1][a] + float(cost[a, b]), 9), -a) for a in range(b)]
            best[piece][b], last = min(options)
            cut[piece][b] = -last
    found, b = [], n
    for piece in range(pieces, 1, -1):
        b = cut[piece][b]
        found.append(b - 1)
    return sorted(found)
