"""FastVID: scenes, the most attended tokens of every frame, and density peaks that take in the rest of their scene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import unit_rows
from tokenprune.core.frames import same_place_cosine, scenes, stretches
from tokenprune.core.merging import Survivors, assign, distances, mixtures, stacked
from tokenprune.core.selection import Selection, ranked, ranks
from tokenprune.methods.base import Method, View, keep_option, option, within
from tokenprune.signals.need import Need
from tokenprune_kernels.density import peak_scores

NEIGHBOURS = 4
ALIKE = 0.95  # frames of a scene that are more alike than this share one budget (Qwen)


@dataclass(frozen=True)
class FastVID(Method):
    """FastVID (Shen et al., NeurIPS 2025, arXiv 2503.11187).

    Frames are cut into scenes where neighbouring descriptors have a cosine below `threshold`, and into `scenes` at
    least. Of a frame's N * keep tokens a part `context` is context, the others are its most attended ones. In a scene
    of m frames the last one and every `every`-th before it are anchors, and share the context of the m frames: they
    keep their highest density peaks (4 nearest neighbours, among the tokens that are not attended) as targets. For
    every anchor, each other token of the scene joins its most similar target: target * w + mean * (1 - w), w being the
    larger of `beta` and 1 / (members + 1).

    `variant`: `onevision` truncates every share, and targets and other anchors' targets are members too; `video`
    (LLaVA-Video) and `qwen` split the budget of a scene as a whole, spread what is attended over its frames (the
    earlier ones get the remainder) and the context over its anchors (the later ones do), and an anchor's own targets
    are no members; `qwen` also gives nothing to a frame that is followed by one with a cosine above 0.95, and
    half a frame of context at most. The published code draws noise to break ties, fails on fewer frames than scenes
    and where an anchor's share is more than it has, and leaves remainders unspent (`fill="none"`). Here ties go to the
    lowest index, shares are cut to what there is, and the remainder goes to the most attended tokens. Descriptors are
    the frames' mean features unless given; the encoder's pooling head, which the paper uses for these and for
    attention, is not in these checkpoints, and attention is the mean received rather than that of a pooled query.
    """

    name: ClassVar[str] = "fastvid"
    paper: ClassVar[str] = "arXiv 2503.11187"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "video, merging"
    waits: ClassVar[str] = "how many scenes and anchors there are follows from the features"

    keep: Keep = keep_option(0.1)
    scenes: int = option(8, "scenes there are at least")
    threshold: float = option(0.9, "cosine of neighbouring frames below which a scene ends")
    context: float = option(0.4, "share of the budget for density peaks")
    every: int = option(4, "distance of anchor frames")
    beta: float = option(0.6, "least weight of a target in its mixture")
    variant: str = option(
        "onevision", "details as published for: onevision, video, qwen", ("onevision", "video", "qwen")
    )
    fill: str = option("attention", "what the remainder goes to: attention or none", ("attention", "none"))
    source: str = option("received", "whose attention counts: received or cls", choices=("received", "cls"))

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self.name, "scenes", self.scenes, 1)
        within(self.name, "every", self.every, 1)
        within(self.name, "context", self.context, 0.0, 1.0)
        within(self.name, "beta", self.beta, 0.0, 1.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("features"), Need("saliency", self.source), Need("frame_features"))

    def select(self, view: View) -> Selection:
        k, frames = self.budget(view), view.frames(self.name)
        if k in (0, view.count):
            return view.first(k)
        exact = isinstance(self.keep, float) and self.of == "current"
        keep = self.keep if exact else k / view.count
        x = frames.spread(view["features"])
        attention = frames.spread(view["saliency"].float()).masked_fill(~frames.present, float("-inf"))
        similarity = same_place_cosine(view["frame_features"][:, :, None]).squeeze(-1)
        scene = scenes(similarity, self.scenes, self.threshold)
        found = []
        for i, present in enumerate(frames.present):
            stays = self._span(x[i], attention[i], present, scene[i], similarity[i], keep)
            whole = stays.all() if self.fill == "none" else stays.exactly(k, attention[i].flatten())
            found.append(frames.tokens(i, *whole))
        return stacked(found)

    def _span(
        self, x: Tensor, attention: Tensor, present: Tensor, scene: Tensor, similarity: Tensor, keep: float
    ) -> Survivors:
        """What stays of one span: x [T, N, d], attention and present [T, N], scene [T], similarity [T - 1]."""
        size = x.shape[1]
        carries = torch.ones_like(scene, dtype=torch.bool)
        if self.variant == "qwen":
            carries[:-1] = (similarity <= ALIKE) | (scene.diff() > 0)
        budget = (present.sum(-1).double() * keep + 1e-9).long() * carries
        runs = stretches(scene)
        salient = torch.cat([self._salient(budget[first:last], carries[first:last]) for first, last in runs])
        attended = present & (ranks(attention) < salient[:, None])
        stays = Survivors(present.numel(), x.device)
        stays.keep(attended.flatten().nonzero().flatten())
        spare = present & ~attended
        peaks = ranked(peak_scores(distances(x), NEIGHBOURS, spare))
        unit = unit_rows(x)
        for first, last in runs:
            context = int(budget[first:last].sum() - salient[first:last].sum())
            for frame, quota in self._anchors(context, carries, first, last).items():
                most = int(spare[frame].sum())
                most = min(most, size // 2) if self.variant == "qwen" else most
                targets = peaks[frame, : min(quota, most)]
                members = spare[first:last].clone()
                if self.variant != "onevision":
                    members[frame - first, targets] = False
                if len(targets):
                    group = assign(unit[first:last][members][None], unit[frame, targets][None])[0]
                    cells = members.flatten().nonzero().flatten() + first * size
                    stays.mix(*mixtures(frame * size + targets, cells, group, self._own, present.numel()))
        return stays

    def _own(self, members: Tensor) -> Tensor:
        """Weight of a target in its mixture."""
        return (1 / (members + 1)).clamp(min=self.beta)

    def _salient(self, budget: Tensor, carries: Tensor) -> Tensor:
        """How many of the tokens [m] that the frames of a scene may keep are its most attended ones."""
        if self.variant == "onevision":
            return budget - (budget.double() * self.context + 1e-9).long()
        total = int(budget.sum())
        total -= int(total * self.context + 1e-9)
        share, rest = divmod(total, int(carries.sum()))
        return (share + (carries.long().cumsum(0) <= rest)) * carries

    def _anchors(self, context: int, carries: Tensor, first: int, last: int) -> dict[int, int]:
        """Anchor frames of a scene, and how many of its `context` targets each has."""
        frames = (carries[first:last].nonzero().flatten() + first).tolist()
        anchors = frames[::-1][:: self.every][::-1]
        share, rest = divmod(context, len(anchors))
        extra = 0 if self.variant == "onevision" else rest
        return {frame: share + (i >= len(anchors) - extra) for i, frame in enumerate(anchors)}
