"""StreamVLN: of tokens that show the same place in the world, the latest stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection, ranks, top_k
from tokenprune.errors import BadInput
from tokenprune.methods.base import Method, View, keep_option, option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class StreamVLN(Method):
    """StreamVLN's voxel pruning (Wei et al., 2025, arXiv 2507.05240).

    Every token has a voxel: a number that the user computes from depth and pose and brings with `run.give(voxels=...)`
    (int [n] for each video; negative: none). Within `stride` frames counted from the first (0: the whole video) only
    the latest token of a voxel stays, of one frame the first in the prompt. A frame that keeps less than `least` of its
    tokens is dropped. A token without a voxel is dropped, or stands alone (`unplaced="keep"`, which is ours).

    The published code holds no voxels; this is the paper's rule as far as known, which says neither `stride` nor
    `least`. With `keep`, which is ours, the latest of these stay, and where there are fewer, the latest of the others.
    """

    name: ClassVar[str] = "streamvln"
    paper: ClassVar[str] = "arXiv 2507.05240"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "video, geometry"
    reads_grid: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("paper", note="OpenRobotLab/StreamVLN at f442c20f holds no code for voxels")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("`stride` and `least`", "the paper gives neither number; by default neither does anything"),
        Difference(
            "with keep the latest tokens stay", "the paper has no budget; keep=none leaves it so, which is the default"
        ),
    )
    adaptive: ClassVar[bool] = True

    keep: Keep | None = keep_option(None, "what survives; none: one token of every voxel")
    stride: int = option(0, "frames after which a voxel is seen anew; 0: never", low=0)
    least: float = option(0.0, "share of its tokens that a frame must keep", low=0.0, high=1.0)
    unplaced: str = option("drop", "what becomes of tokens without a voxel: drop or keep", ("drop", "keep"))

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("voxels"),)

    def select(self, view: View) -> Selection:
        frames = view.frames(self.name)
        kept = torch.stack([self._latest(v, f) for v, f in zip(self._voxels(view), frames.frame, strict=True)])
        inside = frames.spread(kept.long()).sum(-1)
        enough = inside >= self.least * frames.present.sum(-1)
        kept &= enough.gather(1, frames.frame)
        if self.keep is None:
            return Selection.of(kept)
        order = ranks(frames.frame)
        return Selection(top_k(kept * view.count - order, self.budget(view)))

    def _voxels(self, view: View) -> Tensor:
        voxels = view["voxels"]
        if voxels.is_floating_point():
            raise BadInput("voxels must be whole numbers, one for each token.")
        return voxels

    def _latest(self, voxels: Tensor, frame: Tensor) -> Tensor:
        """bool [n]: whether a token is the latest of its voxel."""
        window = frame // self.stride if self.stride else torch.zeros_like(frame)
        _, group = torch.stack([window, voxels]).unique(dim=1, return_inverse=True)
        n = len(voxels)
        number = torch.arange(n, device=voxels.device)
        recency = frame * n + (n - 1 - number)
        best = torch.full((n,), -1, device=voxels.device).scatter_reduce(0, group, recency, "amax")
        return torch.where(voxels < 0, self.unplaced == "keep", recency == best[group])
