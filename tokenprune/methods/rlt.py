"""Run-length tokenisation: groups of a video that do not change from what was kept of their place go unencoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection, top_k
from tokenprune.errors import BadInput
from tokenprune.methods.base import Method, View, keep_option, option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.methods.place import Pixels
from tokenprune.signals.need import Need

FIRST = 255.0  # the change of the first frame: above every other


@dataclass(frozen=True)
class RLT(Method):
    """RLT (Choudhury et al., NeurIPS 2024, arXiv 2411.05222) for groups of patches, before the vision encoder.

    A group stays where the mean absolute difference of its pixels, of brightness from 0 to 1, to the last group that
    stayed at its place is above `tau`; all of the first frame stay. keep=none lets the video decide. With `keep` those
    stay that differ most from the frame before. Pictures stay whole.
    """

    name: ClassVar[str] = "rlt"
    paper: ClassVar[str] = "arXiv 2411.05222"
    year: ClassVar[int] = 2024
    kind: ClassVar[str] = "pixels, video"
    adaptive: ClassVar[bool] = True
    over_frames: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "rccchoudhury/rlt", "69ec8b4b")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("a group is compared with the last one that stayed", "or a slow drift goes at every step"),
        Difference(
            "groups of patches go, by whole frames of the encoder", "so that mergers get all patches of a token"
        ),
        Difference("the threshold is of brightness from 0 to 1", "the code's is of pixels that are normalised"),
        Difference("no embedding of run lengths", "it needs training"),
    )
    waits: ClassVar[str] = "how many groups stay follows from the pixels"
    needs: ClassVar[tuple[Need, ...]] = (Need("pixels"),)

    keep: Keep | None = keep_option(None, "what survives; none: whatever `tau` leaves")
    tau: float = option(0.02, "mean difference, in brightness from 0 to 1, up to which a group goes", low=0.0, high=1.0)

    def schedule(self, layers: int) -> list[tuple[Pixels, Method]]:
        return [(Pixels(), self)]

    def select(self, view: View) -> Selection:
        if view.grid is None or view.count != view.total:
            raise BadInput("rlt compares frames, so it needs the whole video. Make it the first stage.")
        t, h, w = view.grid
        if t == 1:
            return view.first(view.count)
        x = view["pixels"].float().unflatten(1, (t, h * w))
        own = torch.arange(t * h * w, device=x.device).view(t, h * w)
        if self.keep is not None:
            change = x.new_full(x.shape[:3], FIRST)
            change[:, 1:] = (x[:, 1:] - x[:, :-1]).abs().mean(-1)
            index = top_k(change.flatten(1), self.budget(view))
            stays = torch.zeros(len(x), t * h * w, dtype=torch.bool, device=x.device).scatter(1, index, True)
            last = torch.where(stays.view_as(change), own, -1).cummax(1).values.flatten(1)
            return Selection(index, anchors=torch.where(last < 0, index[:, :1], last))
        stands = own.expand(len(x), -1, -1).clone()
        last = x[:, 0]
        for frame in range(1, t):
            stays = (x[:, frame] - last).abs().mean(-1) > self.tau
            stands[:, frame] = torch.where(stays, stands[:, frame], stands[:, frame - 1])
            last = torch.where(stays[..., None], x[:, frame], last)
        stands = stands.flatten(1)
        chosen = Selection.of(stands == own.flatten())
        return Selection(chosen.index, valid=chosen.valid, anchors=stands)
