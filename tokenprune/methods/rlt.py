"""Run-length tokenisation: groups of a video that do not change from what was kept of their place go unencoded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection, evenly, mask_of, top_k
from tokenprune.methods.base import Method, Schedule, View, keep_option, option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.methods.place import Pixels
from tokenprune.signals.need import Need

FIRST = 255.0  # the change of the first frame: above every other


@dataclass(frozen=True)
class RLT(Method):
    """RLT (Choudhury et al., NeurIPS 2024, arXiv 2411.05222) for groups of patches, before the vision encoder.

    A group stays where the mean absolute difference of its pixels, of brightness from 0 to 1, to the last group that
    stayed at its place is above `tau`; all of the first frame stay. keep=none lets the video decide. With `keep` those
    stay that differ most from the frame before, of the first frame all, or an even choice. Without `keep` pictures stay
    whole.
    """

    name: ClassVar[str] = "rlt"
    paper: ClassVar[str] = "arXiv 2411.05222"
    year: ClassVar[int] = 2024
    kind: ClassVar[str] = "pixels, video"
    reads_grid: ClassVar[bool] = True
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
    needs: ClassVar[tuple[Need, ...]] = (Need("pixels"),)

    keep: Keep | None = keep_option(None, "what survives; none: whatever `tau` leaves")
    tau: float = option(0.02, "mean difference, in brightness from 0 to 1, up to which a group goes", low=0.0, high=1.0)

    def schedule(self, layers: int) -> Schedule:
        return [(Pixels(), self)]

    def select(self, view: View) -> Selection:
        parts = [x.flatten(2, 3).float() for x in view.pictures("pixels", "rlt")]
        if self.keep is None:
            stays = torch.cat([self._find_changes(x).flatten(1) for x in parts], dim=1)
            chosen = Selection.of(stays)
        else:
            chosen = Selection(top_k(torch.cat([self._change(x).flatten(1) for x in parts], 1), self.budget(view)))
            stays = mask_of(chosen.index, view.count)
        if not chosen.index.shape[1]:
            return chosen
        own = torch.where(stays, torch.arange(view.count, device=stays.device), -1)
        pieces = zip(own.split([x.shape[1] * x.shape[2] for x in parts], 1), parts, strict=True)
        last = torch.cat([kept.unflatten(1, x.shape[1:3]).cummax(1).values.flatten(1) for kept, x in pieces], 1)
        return replace(chosen, anchors=torch.where(last < 0, chosen.index[:, :1], last))

    def _find_changes(self, x: Tensor) -> Tensor:
        """Of frames x [S, t, places, X]: bool [S, t, places] which groups differ from the last that stayed there."""
        last, stays = x[:, 0], [torch.ones_like(x[:, 0, :, 0], dtype=torch.bool)]
        for frame in x[:, 1:].unbind(1):
            stays.append((frame - last).abs().mean(-1) > self.tau)
            last = torch.where(stays[-1][..., None], frame, last)
        return torch.stack(stays, 1)

    def _change(self, x: Tensor) -> Tensor:
        """Of the same the difference from the frame before [S, t, places]; the first frame's are above all others and
        spread what is kept evenly over it."""
        first = FIRST + evenly(x.shape[2], x.device)
        return torch.cat([first.expand(len(x), 1, -1), (x[:, 1:] - x[:, :-1]).abs().mean(-1)], dim=1)
