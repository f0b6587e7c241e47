"""VScan: the best of every window by a shallow encoder block, of all by a deep one, then inside the LLM."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import unit_rows
from tokenprune.core.frames import Frames
from tokenprune.core.merging import mean_weights
from tokenprune.core.selection import Selection, gather_rows, mask_of, ranks, to_device, top_k
from tokenprune.methods.base import (
    BudgetMethod,
    Schedule,
    ScoreMethod,
    View,
    fill_option,
    keep_option,
    option,
    source_option,
)
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class VScan(BudgetMethod):
    """VScan (Zhang et al., TMLR 2026, arXiv 2505.22654).

    Half of k tokens are the best attended of every window of `window` x `window` tokens, as many of each, in the
    encoder block at `depth` of all blocks (CLIP: 5 of 24; Qwen2.5-VL: its first full block, `window=4`); the others
    those best attended of the rest in the block whose output becomes the features. Every token that goes is averaged
    into the kept one most like it. `first` times `keep` stay before the LLM, and before half of its layers `later` of
    these (`vscan_inner`), which is `keep` on average over the layers. The encoder runs at full length.
    """

    name: ClassVar[str] = "vscan"
    paper: ClassVar[str] = "arXiv 2505.22654"
    year: ClassVar[int] = 2026
    kind: ClassVar[str] = "attention, merging, staged"
    reads_grid: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "Tencent/SelfEvolvingAgent", "a82450e1")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "what windows leave of their half goes to the tokens best attended",
            "the budget is kept exactly; the code rounds down in every window",
            {"fill": "none"},
        ),
        Difference("queries and keys are rotated once", "the code rotates them twice for Qwen2.5-VL"),
        RENUMBERED,
    )

    keep: Keep = keep_option(64 / 576, "what a layer of the LLM processes on average")
    window: int = option(6, "tokens along a side of a window", low=1)
    depth: float = option(5 / 24, "where the windows' block stands, as a share of the encoder's", low=0.0, high=1.0)
    first: float = option(1.5, "how much more stays before the LLM than on average", low=1.0)
    later: float = option(1 / 3, "what stays of that from half of the layers on", low=0.0, high=1.0)
    fill: str = fill_option("attention")
    source: str = source_option("cls")

    @property
    def needs(self) -> tuple[Need, ...]:
        early = Need("saliency_early", self.source, depth=self.depth)
        return (Need("features"), early, Need("saliency", self.source))

    def schedule(self, layers: int) -> Schedule:
        if isinstance(self.keep, int):
            return [(0, self)]
        inner = self.derive(VScanInner, keep=1.0 if self.keep == 1.0 else max(self.later, 1e-9))
        return [(0, replace(self, keep=min(1.0, self.first * self.keep))), *inner.schedule(layers)]

    def choose(self, view: View) -> Selection:
        k, windows = self.budget(view), self._windows(view)
        each = k // 2 // windows.count
        early = windows.spread(view["saliency_early"].float()).masked_fill(~windows.present, float("-inf"))
        local = windows.taken(ranks(early)) < each
        if self.fill == "none":
            k -= k // 2 - each * windows.count
        index = top_k(local.long() * view.count - ranks(view["saliency"].float()), k)
        unit = unit_rows(view["features"])
        nearest = (unit @ gather_rows(unit, index).mT).argmax(-1)
        own = torch.arange(k, device=index.device).expand_as(index)
        group = torch.where(mask_of(index, view.count), nearest.scatter(1, index, own), nearest)
        return Selection(index, mean_weights(index, group))

    def _windows(self, view: View) -> Frames:
        """The tokens as windows x places in them; those at the right and lower edge may be smaller."""
        part, frame, row, column = view.cells(self.name)
        grids = [(t, math.ceil(h / self.window), math.ceil(w / self.window)) for t, h, w in view.grids]
        sizes = [t * h * w for t, h, w in grids]
        first = to_device([sum(sizes[:i]) for i in range(len(sizes))], part.device)[part]
        high, wide = (to_device([grid[axis] for grid in grids], part.device)[part] for axis in (1, 2))
        number = first + (frame * high + row // self.window) * wide + column // self.window
        patch = row % self.window * self.window + column % self.window
        return Frames.of(number, patch, sum(sizes), self.window**2)


@dataclass(frozen=True)
class VScanInner(ScoreMethod, stage_of=VScan):
    """VScan inside the LLM: the tokens that the last prompt token attends to most stay."""

    name: ClassVar[str] = "vscan_inner"

    keep: Keep = keep_option(1 / 3)
    needs: ClassVar[tuple[Need, ...]] = (Need("attention_row", "next"),)

    def schedule(self, layers: int) -> Schedule:
        return [(max(1, layers // 2), self)]

    def score(self, view: View) -> Tensor:
        return view.mean_over_heads("attention_row")
