"""PixelPrune: groups of patches that the ones beside them predict are never encoded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection, mask_of, top_k
from tokenprune.methods.base import Method, Schedule, View, keep_option, option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.methods.place import Pixels
from tokenprune.signals.need import Need
from tokenprune_kernels.prediction import METRICS, distances, predict_anchored


@dataclass(frozen=True)
class PixelPrune(Method):
    """PixelPrune (arXiv 2604.00886), before the vision encoder.

    A group of patches (what becomes one token) is predicted from the groups A to its left, B above and C above A: by B
    where C is like A but not like B, else by A; in the first row by A, in the first column by B. It goes where it is
    like its prediction: where the distance of their pixels, of brightness from 0 to 1, is at most `tau`. So of equal
    groups in reading order the first stays. With `anchored`, what went is replaced by what predicted it before it
    predicts others, so that no group is farther than `tau` from what stands for it; at tau=0 that is the same.

    keep=none, as published, lets the picture decide: tau=0 takes out exact repetitions alone, of flat backgrounds above
    all, which noise, JPEG and resizing leave few of. With `keep` the groups stay that are farthest from their
    predictions, which is a tau of that picture's own; each frame of a video is a picture.
    """

    name: ClassVar[str] = "pixelprune"
    paper: ClassVar[str] = "arXiv 2604.00886"
    year: ClassVar[int] = 2026
    kind: ClassVar[str] = "pixels"
    reads_grid: ClassVar[bool] = True
    adaptive: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "OPPO-Mente-Lab/PixelPrune", "a870e31b")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("`keep` takes the groups farthest from their predictions", "so that a budget can be asked for"),
        Difference("frames of videos are pictures too", "the code leaves videos as they are"),
        Difference("of two frames that make one row all pixels count", "the code looks at the first, equal in a still"),
    )
    needs: ClassVar[tuple[Need, ...]] = (Need("pixels"),)

    keep: Keep | None = keep_option(None, "what survives; none: whatever `tau` leaves")
    tau: float = option(0.0, "largest distance, in brightness from 0 to 1, of what goes", low=0.0, high=1.0)
    metric: str = option("max", "distance of two groups: largest difference, mean, or root mean square", METRICS)
    anchored: bool = option(True, "whether what went is replaced by its prediction before it predicts others")

    def schedule(self, layers: int) -> Schedule:
        return [(Pixels(), self)]

    def select(self, view: View) -> Selection:
        found, first = [], 0
        for x in view.pictures("pixels", "pixelprune"):
            t, h, w = x.shape[1:4]
            frames = torch.arange(first, first + t * h * w, h * w, device=x.device)[:, None]
            local, distance = self._find_predictors(x.flatten(0, 1).float())
            found.append(((local.unflatten(0, (-1, t)) + frames).flatten(1), distance.unflatten(0, (-1, t)).flatten(1)))
            first += t * h * w
        predicted, distance = (torch.cat(one, dim=1) for one in zip(*found, strict=True))
        if self.keep is None:
            stays = distance > self.tau
            chosen = Selection.of(stays)
        else:
            chosen = Selection(top_k(distance, self.budget(view)))
            stays = mask_of(chosen.index, view.count)
        stands = torch.where(stays, torch.arange(view.count, device=stays.device), predicted)
        for _ in range(view.count.bit_length()):  # what stands for what stands for it
            stands = stands.gather(1, stands)
        return replace(chosen, anchors=stands)

    def _find_predictors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of pictures x [S, h, w, X]: int64 [S, n] which group predicts each, and its distance [S, n], infinite for the
        first."""
        if self.keep is None and self.tau > 0 and self.anchored:
            stands = predict_anchored(x, self.tau, self.metric)
            return stands, torch.where(stands == torch.arange(stands.shape[1], device=x.device), torch.inf, 0.0)
        return self._predict(
            distances(x[:, :, 1:], x[:, :, :-1], self.metric), distances(x[:, 1:], x[:, :-1], self.metric)
        )

    def _predict(self, left: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        """The same of groups as they are.

        left: [S, h, w - 1], the distance of each group to the one on its left; above: [S, h - 1, w].
        """
        h, w = left.shape[1], above.shape[2]
        own = torch.arange(h * w, device=left.device).view(h, w)
        distance = left.new_full((len(left), h, w), torch.inf)
        distance[:, :, 1:], distance[:, 1:, 0] = left, above[:, :, 0]
        predicted = (own - 1).expand_as(distance).clone()
        predicted[:, 1:, 0] = own[:-1, 0]
        predicted[:, 0, 0] = 0
        by_above = (above[:, :, :-1] <= self.tau) & (left[:, :-1] > self.tau)
        predicted[:, 1:, 1:] = torch.where(by_above, own[:-1, 1:], predicted[:, 1:, 1:])
        distance[:, 1:, 1:] = torch.where(by_above, above[:, :, 1:], distance[:, 1:, 1:])
        return predicted.flatten(1), distance.flatten(1)
