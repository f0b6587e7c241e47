"""FlashVID: attended and diverse tokens of every frame, and trees of alike tokens through time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import cosine_distance, max_min, unit_rows
from tokenprune.core.frames import frame_means, same_patch_cosine, scenes, stretches
from tokenprune.core.merging import Survivors, density_peaks, stack_spans
from tokenprune.core.selection import Selection
from tokenprune.methods.base import (
    BudgetMethod,
    Schedule,
    ScoreMethod,
    View,
    fill_option,
    keep_option,
    option,
    rounding_option,
    source_option,
)
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need

NEIGHBOURS = 7


@dataclass(frozen=True)
class FlashVID(BudgetMethod):
    """FlashVID (Fan et al., ICLR 2026, arXiv 2602.08024).

    Before the LLM every frame keeps a part `diverse` of its budget by max-min over distance times
    the attention of the candidate (ADTS). The others find, within a scene, their most similar one in the frame before;
    with a cosine above `similar` they join it, and such trees become their mean at the root (TSTM; where fewer roots
    than budget would be left, the weakest links break, and all as weak as the strongest of these). Density peaks
    cluster the roots of each frame, frames sharing the budget of the scene by their number of roots; a cluster is the
    mean of its roots. `expansion` times `keep` stay, and before 20 of 28 layers `inner` of these (`flashvid_inner`),
    which is `keep` on average over the layers.

    Published are `weighting="event"` for LLaVA, and for Qwen-VL `weighting="attention"` with 4 scenes (in Qwen3-VL the
    inner stage keeps 0.1 before 28 of 36 layers). `event`, the second version, multiplies a candidate's attention by
    its relevance, the mean of its products with the mean tokens of the frames of its scene. Below 0 it counts as 0: the
    published code never gets to such a candidate, but repeats a token. It sums a tree's tokens and divides by the
    root's direct children and itself, which is no mean once a tree is deeper (`trees="published"`). In a scene of one
    frame it clusters every token, kept ones too, and can emit a token twice; here kept ones are out of it. Every count
    is rounded up as published, and the surplus over the budget is taken off by attention (`fill="none"`: left).
    """

    name: ClassVar[str] = "flashvid"
    paper: ClassVar[str] = "arXiv 2602.08024"
    year: ClassVar[int] = 2026
    kind: ClassVar[str] = "video, merging, staged"
    reads_grid: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "Fanziyang-v/FlashVID", "1d37422c")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("a relevance below 0 counts as 0", "the code never gets to such a candidate, but repeats a token"),
        Difference(
            "a tree of tokens becomes its mean",
            "the code divides by the root's direct children, which is no mean in deeper trees",
            {"trees": "published"},
        ),
        Difference(
            "tokens above the budget are taken off by attention",
            "the budget is kept exactly; the code rounds every share up",
            {"fill": "none"},
        ),
        Difference("in a scene of one frame kept tokens are not clustered", "the code can emit a token twice"),
    )
    waits: ClassVar[str] = "how many scenes and trees there are follows from the features"

    keep: Keep = keep_option(0.1)
    rounding: str = rounding_option("up")
    diverse: float = option(0.7, "share of a frame's budget for attended and diverse tokens", low=0.0, high=1.0)
    similar: float = option(0.8, "cosine above which tokens of neighbouring frames join")
    scenes: int = option(8, "scenes there are at least", low=1)
    threshold: float = option(0.9, "cosine of neighbouring frames' means below which a scene ends")
    weighting: str = option("attention", "what weighs distances: attention or also event", ("attention", "event"))
    trees: str = option("mean", "what a tree becomes: mean of its tokens, or as published", ("mean", "published"))
    expansion: float = option(1.25, "how much more stays before the LLM than by the whole method", low=1.0)
    inner: float = option(0.3, "what the inner stage keeps of that", low=0.0, high=1.0)
    fill: str = fill_option("attention")
    source: str = source_option("received")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("features"), Need("saliency", self.source))

    def schedule(self, layers: int) -> Schedule:
        if isinstance(self.keep, int):
            return [(0, self)]
        inner = self.derive(FlashVIDInner, keep=1.0 if self.keep == 1.0 else max(self.inner, 1e-9))
        return [(0, replace(self, keep=min(self.keep * self.expansion, 1.0))), *inner.schedule(layers)]

    def choose(self, view: View) -> Selection:
        k = self.budget(view)
        frames = view.frames(self.name)
        x = frames.spread(view["features"])
        attention = frames.spread(view["saliency"].double())
        means = frame_means(x, frames.present)
        scene = scenes(same_patch_cosine(means[:, :, None]).squeeze(-1), self.scenes, self.threshold)
        if self.weighting == "event":
            attention = attention * self._relevance(x, means, scene)
        share = self.fraction(view)
        picks = self._picks(x, attention.masked_fill(~frames.present, -1), math.ceil(frames.size * share - 1e-9))
        found = []
        for i, present in enumerate(frames.present):
            budget = (present.sum(-1) * share - 1e-9).ceil().long()
            diverse = (self.diverse * budget - 1e-9).ceil().long()
            adts = present & (picks[i] < diverse[:, None])
            stays = Survivors(present.numel(), x.device)
            stays.keep(adts.flatten().nonzero().flatten())
            for first, last in stretches(scene[i]):
                rest = int((budget - diverse)[first:last].sum())
                if rest:
                    self._trees(stays, x[i, first:last], (present & ~adts)[first:last], first * frames.size, rest)
            scores = attention[i].masked_fill(~present, float("-inf")).flatten()
            whole = stays.all() if self.fill == "none" else stays.exactly(k, scores)
            found.append(frames.tokens(i, *whole))
        return stack_spans(found)

    def _relevance(self, x: Tensor, means: Tensor, scene: Tensor) -> Tensor:
        """float [S, T, N]: how much a token is like the frames of its scene; x [S, T, N, d], means [S, T, d]."""
        together = (scene[:, :, None] == scene[:, None]).to(means.dtype)
        event = together @ means / together.sum(-1, keepdim=True)
        return (x.to(means.dtype) @ event[..., None]).squeeze(-1).clamp(min=0)

    def _picks(self, x: Tensor, attention: Tensor, budget: int) -> Tensor:
        """int64 [S, T, N]: when a token of a frame is picked for diversity, N where it never is."""
        size = x.shape[2]
        weighed = cosine_distance(x.flatten(0, 1)) * attention.flatten(0, 1)[:, None]
        own = torch.eye(size, dtype=torch.bool, device=x.device)
        start = weighed.masked_fill(own, float("inf")).amin(1)
        picks = max_min(weighed, min(math.ceil(self.diverse * budget), size), start)
        turn = torch.full((len(picks), size), size, device=x.device)
        return turn.scatter(1, picks, torch.arange(picks.shape[1], device=x.device).expand_as(picks)).view(x.shape[:3])

    def _trees(self, stays: Survivors, x: Tensor, spare: Tensor, offset: int, budget: int) -> None:
        """Add what a scene x [m, N, d] keeps beside its diverse tokens: clusters of trees of the tokens `spare` [m, N].

        offset: the cell of its first token.
        """
        frames, size, _ = x.shape
        unit = unit_rows(x)
        alike = (unit[1:] @ unit[:-1].mT).masked_fill(~spare[:-1, None], -2)
        best, parent = alike.max(-1)
        linked = spare[1:] & (best > self.similar)
        most = max(int(spare.sum()) - budget, 0)  # links that leave as many roots as the budget
        if int(linked.sum()) > most:
            linked &= best > best.masked_fill(~linked, -2).flatten().topk(max(most, 1)).values[-1]
        root = torch.arange(frames * size, device=x.device).view(frames, size).clone()
        for frame in range(1, frames):
            root[frame] = torch.where(linked[frame - 1], root[frame - 1, parent[frame - 1]], root[frame])
        tokens = spare.flatten().nonzero().flatten()
        root = root.flatten()
        sizes = root[tokens].bincount(minlength=frames * size)
        mean = torch.zeros(frames * size, x.shape[-1], dtype=torch.float64, device=x.device)
        roots = (sizes > 0).view(frames, size)
        if self.trees == "published":
            children = (parent + torch.arange(frames - 1, device=x.device)[:, None] * size)[linked]
            sizes = 1 + children.bincount(minlength=frames * size)
        mean = mean.index_add(0, root[tokens], x.flatten(0, 1)[tokens].double()) / sizes.clamp(min=1)[:, None]
        numbers = roots.sum(-1).tolist()
        for frame, number in enumerate(numbers):
            count = min(math.ceil(number * (budget / sum(numbers))), number)
            mine = roots[frame].nonzero().flatten() + frame * size
            if not count:
                continue
            centres, group = density_peaks(mean[mine][None], count, min(NEIGHBOURS, count))
            cluster = torch.full((frames * size,), -1, device=x.device)
            cluster[mine] = group[0]
            own = cluster[root[tokens]]
            share = 1 / (sizes[root[tokens]] * group[0].bincount(minlength=count)[own.clamp(min=0)])
            weights = torch.zeros(count, stays.count, dtype=share.dtype, device=x.device)
            weights[own[own >= 0], tokens[own >= 0] + offset] = share[own >= 0]
            stays.mix(mine[centres[0]] + offset, weights)


@dataclass(frozen=True)
class FlashVIDInner(ScoreMethod, stage_of=FlashVID):
    """FlashVID inside the LLM: the most attended tokens by the last prompt token stay."""

    name: ClassVar[str] = "flashvid_inner"

    keep: Keep = keep_option(0.3)
    rounding: str = rounding_option("up")
    needs: ClassVar[tuple[Need, ...]] = (Need("attention_row"),)

    def schedule(self, layers: int) -> Schedule:
        return [(max(1, round(20 * layers / 28)), self)]

    def score(self, view: View) -> Tensor:
        return view.mean_over_heads("attention_row")
