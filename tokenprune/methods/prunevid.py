"""PruneVid: windows of frames, static places merged through time, the rest through space, then the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import unit_rows
from tokenprune.core.frames import Frames, same_patch_cosine, stretches
from tokenprune.core.merging import Survivors, density_peaks, mean_weights, stack_spans
from tokenprune.core.selection import Selection, ranks, top_k
from tokenprune.methods.base import BudgetMethod, Method, Schedule, View, fill_option, keep_option, option
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need

NEIGHBOURS = 7
FEW = 14  # tokens that are not worth merging


@dataclass(frozen=True)
class PruneVid(BudgetMethod):
    """PruneVid (Huang et al., ACL Findings 2025, arXiv 2412.16117).

    Before the LLM frames are clustered by their mean tokens (density peaks, a cluster for every four
    frames); of each cluster the longest runs stay if they are longer than one frame, and frames outside join the longer
    run beside them. In such a window a place is static if the mean cosine of its tokens over all pairs of frames is
    above `threshold`; static places become their mean over time. These, and every frame's other tokens, become
    int(`ratio` * count) cluster means each, where there are more than 14. After layer 10, which is before the 12th of
    32, `prunevid_question` keeps `question` of what is left.

    keep=none gives the published counts. With `keep`, which is ours, the ratio follows from the budget, and what is
    missing or too much is settled by how much a token differs from the one before it. Frames alone in their window have
    no static places (published: 0 / 0). A mean stands in its window's first frame.
    """

    name: ClassVar[str] = "prunevid"
    paper: ClassVar[str] = "arXiv 2412.16117"
    year: ClassVar[int] = 2024
    kind: ClassVar[str] = "video, merging, text-guided, staged"
    reads_grid: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "Visual-AI/PruneVid", "b12600c6")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("the most attended tokens left fill up to k", "the budget is kept exactly", {"fill": "none"}),
        Difference("frames alone in their window have no static places", "the code divides 0 by 0"),
        Difference("ties go to the lowest index", "the code draws noise, so that two runs differ"),
        Difference(
            "the second stage does not count the static tokens of a window apart",
            "a stage between layers cannot tell them from others",
        ),
        Difference(
            "a mean stands at its place in the first frame of its window",
            "the code puts static tokens first, which loses time",
        ),
        RENUMBERED,
    )
    adaptive: ClassVar[bool] = True
    waits: ClassVar[str] = "how many scenes and still patches there are follows from the features"

    keep: Keep | None = keep_option(None, "what survives the merging; none: what `ratio` and `threshold` leave")
    threshold: float = option(0.8, "mean cosine above which a place is static")
    ratio: float = option(0.5, "cluster means for each token, where keep does not say", low=0.0, high=1.0)
    clusters: float = option(0.25, "clusters for each frame", low=0.0, high=1.0)
    question: float = option(0.4, "what the second stage keeps", low=0.0, high=1.0)
    fill: str = fill_option("score", "how the second stage meets its budget exactly")

    needs: ClassVar[tuple[Need, ...]] = (Need("features"), Need("frame_features"))

    def schedule(self, layers: int) -> Schedule:
        if isinstance(self.keep, int):
            return [(0, self)]
        question = self.derive(PruneVidQuestion, keep=1.0 if self.keep == 1.0 else max(self.question, 1e-9))
        return [(0, self), *question.schedule(layers)]

    def choose(self, view: View) -> Selection:
        k = None if self.keep is None else self.budget(view)
        frames = view.frames(self.name)
        x = frames.spread(view["features"])
        together = frames.present[:, 1:] & frames.present[:, :-1]
        new = 1 - torch.where(together, same_patch_cosine(x), -1.0)
        new = pad(new, (0, 0, 1, 0), value=2.0).masked_fill(~frames.present, float("-inf"))
        found = []
        for i, present in enumerate(frames.present):
            windows = stretches(self._labels(view["frame_features"][i]))
            stays = self._span(x[i], present, windows, k)
            whole = stays.all() if k is None else stays.exactly(k, new[i].flatten())
            found.append(frames.tokens(i, *whole))
        return stack_spans(found)

    def _labels(self, described: Tensor) -> Tensor:
        """int64 [T]: the window of every frame."""
        frames = len(described)
        count = max(1, int(frames * self.clusters))
        found = density_peaks(described[None], count, min(NEIGHBOURS, frames))[1][0]
        label, runs = found.tolist(), stretches(found)
        longest = {label[first]: max(b - a for a, b in runs if label[a] == label[first]) for first, _ in runs}
        for first, last in runs:
            if last - first == 1 or last - first < longest[label[first]]:
                label[first:last] = [-1] * (last - first)
        for first, last in stretches(torch.tensor(label)):
            if label[first] < 0:
                sides = [(a, b) for a, b in stretches(torch.tensor(label)) if b == first or a == last]
                a, _ = max(sides, key=lambda run: run[1] - run[0], default=(None, None))
                label[first:last] = [0 if a is None else label[a]] * (last - first)
        return torch.tensor(label)

    def _span(self, x: Tensor, present: Tensor, windows: list[tuple[int, int]], k: int | None) -> Survivors:
        size = x.shape[1]
        stays = Survivors(present.numel(), x.device)
        static = [self._static(x[first:last], present[first:last]) for first, last in windows]
        saved = sum(int(s.sum()) * (last - first - 1) for s, (first, last) in zip(static, windows, strict=True))
        ratio = self.ratio if k is None else min(1.0, k / max(int(present.sum()) - saved, 1))
        for fixed, (first, last) in zip(static, windows, strict=True):
            patches = fixed.nonzero().flatten()
            if len(patches):
                mean = x[first:last, patches].double().mean(0)
                self._merge(stays, mean, patches, range(first * size, last * size, size), ratio, k is None)
            for frame in range(first, last):
                own = (present[frame] & ~fixed).nonzero().flatten()
                if len(own):
                    self._merge(stays, x[frame, own], own, range(frame * size, frame * size + 1), ratio, k is None)
        return stays

    def _static(self, x: Tensor, present: Tensor) -> Tensor:
        """bool [N]: the places of a window x [w, N, d] where nothing moves."""
        frames = len(x)
        if frames == 1:
            return torch.zeros_like(present[0])
        unit = unit_rows(x)
        pairs = unit.sum(0).square().sum(-1) - frames
        return (pairs / (frames * (frames - 1)) > self.threshold) & present.all(0)

    def _merge(
        self, stays: Survivors, x: Tensor, patches: Tensor, starts: range, ratio: float, published: bool
    ) -> None:
        """Add the cluster means of x [m, d], the means over the frames that begin at the cells `starts`."""
        few = published and len(x) <= FEW
        count = len(x) if few else int(len(x) * ratio + 1e-9)
        if not count:
            return
        centres, group = density_peaks(x[None], count, min(NEIGHBOURS, len(x)))
        mixed = mean_weights(centres, group)[0]
        weights = torch.zeros(count, stays.count, device=x.device)
        for start in starts:
            weights[:, start + patches] = mixed / len(starts)
        stays.mix(starts[0] + patches[centres[0]], weights)


@dataclass(frozen=True)
class PruneVidQuestion(Method, stage_of=PruneVid):
    """PruneVid inside the LLM: of every frame int(`keep` * count) tokens stay, those with the highest attention from
    any head of any text token; the most attended of the others fill up to k (`fill="none"`: nothing does, as
    published).

    The published code counts the static tokens of a window apart, which a stage between layers cannot tell from others;
    a mean counts in its window's first frame here.
    """

    name: ClassVar[str] = "prunevid_question"
    reads_grid: ClassVar[bool] = True

    keep: Keep = keep_option(0.4)
    fill: str = fill_option("score")
    needs: ClassVar[tuple[Need, ...]] = (Need("text_attention"),)

    def schedule(self, layers: int) -> Schedule:
        return [(max(1, round(11 * layers / 32)), self)]

    def select(self, view: View) -> Selection:
        scores = view["text_attention"].float().amax((1, 2))
        frames: Frames = view.frames(self.name)
        rank = frames.taken(ranks(frames.spread(scores).masked_fill(~frames.present, float("-inf"))))
        share = (frames.present.sum(-1).double() * self.fraction(view)).long().gather(1, frames.frame)
        if self.fill == "none":
            return Selection.of(rank < share)
        return Selection(top_k((rank < share) * view.count - ranks(scores), self.budget(view)))
