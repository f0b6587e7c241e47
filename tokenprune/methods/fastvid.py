"""FastVID: scenes, the most attended tokens of every frame, and density peaks that take in the rest of their scene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import unit_rows
from tokenprune.core.frames import same_patch_cosine, scenes, stretches
from tokenprune.core.merging import Survivors, assign, distances, mixtures, stack_spans
from tokenprune.core.selection import Selection, order_of, ranks, to_device
from tokenprune.methods.base import BudgetMethod, View, fill_option, keep_option, option, source_option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need
from tokenprune_kernels.density import peak_scores

NEIGHBOURS = 4
ALIKE = 0.95  # a frame this much like the next one carries nothing (Qwen)


@dataclass(frozen=True)
class FastVID(BudgetMethod):
    """FastVID (Shen et al., NeurIPS 2025, arXiv 2503.11187).

    Frames are cut into scenes where neighbouring descriptors have a cosine below `threshold`, and into `scenes` at
    least. Of a frame's N * keep tokens a part `context` is context, the others are its most attended ones. In a scene
    of m frames the last one and every `every`-th before it are anchors, and share the context of the m frames: they
    keep their highest density peaks (4 nearest neighbours, among the tokens that are not attended) as targets. For
    every anchor, each other token of the scene joins its most similar target: target * w + mean * (1 - w), w being the
    larger of `beta` and 1 / (members + 1).

    `variant` says whose published code it is. `onevision` truncates every share; members are all tokens of the scene
    that are not attended, targets and other anchors' targets too, and of the anchor's frame alone where its share is no
    more than a frame's own. `video` (LLaVA-Video) and `qwen` split the budget of a scene as a whole, int(N * keep)
    tokens for each of its frames: what is attended goes to its frames evenly (the earlier ones get the remainder), the
    context to its anchors (the later ones do), and an anchor's own targets are no members. In `qwen` a frame that is
    followed by one with a cosine of 0.95 or more carries nothing, the frames of the scene that do carry share the
    whole budget; a scene has one target at least, a frame of several half its tokens at most, and attended tokens get
    what that leaves of a frame.

    `fill="none"` gives the published output; by default what the shares leave unspent goes to the most attended
    tokens. The published code draws noise to break ties, and fails on fewer frames than scenes and where a share is
    more than a frame has; here ties go to the lowest index, and such a share is cut. It also counts the newlines of
    LLaVA-Video among the tokens, which here are none. Descriptors are the frames' mean features unless given: the
    encoder's pooling head, from which all but `qwen` take these and the attention, is not in these checkpoints. The
    attention is the mean that a token receives; in `qwen` the paper's is that of a frame's mean query.
    """

    name: ClassVar[str] = "fastvid"
    paper: ClassVar[str] = "arXiv 2503.11187"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "video, merging"
    reads_grid: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "LunarShen/FastVID", "a40a109c")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "the remainder of all shares goes to the most attended tokens",
            "the budget is kept exactly; the code leaves it unspent",
            {"fill": "none"},
        ),
        Difference("ties go to the lowest index", "the code draws noise, so that two runs differ"),
        Difference(
            "frames are described by their mean features",
            "the encoder's pooling head is not in these checkpoints; bring `frame_features`",
        ),
        Difference(
            "newlines of LLaVA-Video are no visual tokens",
            "the code keeps those of every row that it keeps a token of, beyond the budget",
        ),
    )
    waits: ClassVar[str] = "how many scenes and anchors there are follows from the features"

    keep: Keep = keep_option(0.1)
    scenes: int = option(8, "scenes there are at least", low=1)
    threshold: float = option(0.9, "cosine of neighbouring frames below which a scene ends")
    context: float = option(0.4, "share of the budget for density peaks", low=0.0, high=1.0)
    every: int = option(4, "distance of anchor frames", low=1)
    beta: float = option(0.6, "least weight of a target in its mixture", low=0.0, high=1.0)
    variant: str = option(
        "onevision", "details as published for: onevision, video, qwen", ("onevision", "video", "qwen")
    )
    fill: str = fill_option("attention", "what the remainder goes to")
    source: str = source_option("received")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("features"), Need("saliency", self.source), Need("frame_features"))

    def choose(self, view: View) -> Selection:
        k, frames = self.budget(view), view.frames(self.name)
        x = frames.spread(view["features"])
        attention = frames.spread(view["saliency"].float()).masked_fill(~frames.present, float("-inf"))
        similarity = same_patch_cosine(view["frame_features"][:, :, None]).squeeze(-1)
        scene = scenes(similarity, self.scenes, self.threshold)
        found = []
        for i, present in enumerate(frames.present):
            stays = self._span(x[i], attention[i], present, scene[i], similarity[i], self.fraction(view))
            whole = stays.all() if self.fill == "none" else stays.exactly(k, attention[i].flatten())
            found.append(frames.tokens(i, *whole))
        return stack_spans(found)

    def _span(
        self, x: Tensor, attention: Tensor, present: Tensor, scene: Tensor, similarity: Tensor, keep: float
    ) -> Survivors:
        """What stays of one span: x [T, N, d], attention and present [T, N], scene [T], similarity [T - 1]."""
        size = x.shape[1]
        there = present.sum(-1).tolist()
        budget = [int(count * keep + self.slack) for count in there]
        alike = (similarity >= ALIKE).tolist()
        runs = stretches(scene)
        salient: list[int] = []
        context: list[int] = []
        for first, last in runs:
            carries = [self.variant != "qwen" or i + 1 == last or not alike[i] for i in range(first, last)]
            own = self._shares(budget[first:last], there[first:last], carries)
            salient += own[0]
            context += own[1]
        attended = present & (ranks(attention) < to_device(salient, x.device)[:, None])
        stays = Survivors(present.numel(), x.device)
        stays.keep(attended.flatten().nonzero().flatten())
        spare = present & ~attended
        peaks = order_of(peak_scores(distances(x), NEIGHBOURS, spare))
        unit = unit_rows(x)
        for first, last in runs:
            for frame in range(first, last):
                count = min(context[frame], there[frame] - min(salient[frame], there[frame]))
                if not count:
                    continue
                targets = peaks[frame, :count].sort().values
                alone = self.variant == "onevision" and count == budget[frame] - salient[frame]
                start, end = (frame, frame + 1) if alone else (first, last)
                members = spare[start:end].clone()
                if self.variant != "onevision":
                    members[frame - start, targets] = False
                group = assign(unit[start:end][members][None], unit[frame, targets][None])[0]
                cells = members.flatten().nonzero().flatten() + start * size
                stays.mix(*mixtures(frame * size + targets, cells, group, self._own, present.numel()))
        return stays

    def _own(self, members: Tensor) -> Tensor:
        """Weight of a target in its mixture."""
        return (1 / (members + 1)).clamp(min=self.beta)

    def _shares(self, budget: list[int], there: list[int], carries: list[bool]) -> tuple[list[int], list[int]]:
        """How many attended tokens and how many targets each frame of a scene has.

        budget: tokens that a frame is worth; there: tokens it has; carries: whether it may have any of the scene's.
        """
        frames = [i for i, carried in enumerate(carries) if carried]
        anchors = frames[::-1][:: self.every][::-1]
        salient, context = [0] * len(budget), [0] * len(budget)
        if self.variant == "onevision":
            salient = [own - int(own * self.context) for own in budget]
            for i in anchors:
                context[i] = (sum(budget) - sum(salient)) // len(anchors)
            return salient, context
        total = int(sum(budget) * self.context)
        if self.variant == "qwen":
            total = max(total, 1)
        share, rest = divmod(max(sum(budget) - total, 0), len(frames))
        for turn, i in enumerate(frames):
            salient[i] = share + (turn < rest)
        share, rest = divmod(total, len(anchors))
        for turn, i in enumerate(anchors):
            context[i] = share + (turn >= len(anchors) - rest)
        if self.variant == "qwen" and len(budget) > 1:
            context = [min(own, size // 2) for own, size in zip(context, there, strict=True)]
            salient = [min(own, size - taken) for own, size, taken in zip(salient, there, context, strict=True)]
        return salient, context
