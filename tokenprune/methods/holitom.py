"""HoliTom: windows in which most tokens stand still, merged through time, then through space, then inside the LLM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import unit_rows
from tokenprune.core.frames import same_patch_cosine
from tokenprune.core.merging import Survivors, density_peaks, stack_spans
from tokenprune.core.selection import Selection, mask_of, one_hot, order_of, top_k
from tokenprune.methods.base import (
    BudgetMethod,
    Schedule,
    View,
    fill_option,
    keep_option,
    option,
    source_option,
)
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need

NEIGHBOURS = 7


@dataclass(frozen=True)
class HoliTom(BudgetMethod):
    """HoliTom (Shao et al., NeurIPS 2025, arXiv 2505.21334).

    Before the LLM a place is static in a window of frames if the cosine of neighbouring frames stays
    above `threshold` there; dynamic programming cuts the video into the windows that save most tokens. What must still
    go is a ratio of what is left: the static places of a window become their mean over time and then as many density
    peaks (7 neighbours), each `beta` of itself and 1 - `beta` of the mean of its cluster; of every frame's dynamic
    tokens the most attended stay, a part `clustered` of them as density peaks. Before 18 of 28 layers `holitom_inner`
    keeps `inner` of what is left.

    Counts are rounded per window and frame; what is over the budget or missing is settled by attention (`fill="none"`:
    left as published). A mean stands at its place in the window's first frame, and order is that of the prompt, not
    static tokens first.
    """

    name: ClassVar[str] = "holitom"
    paper: ClassVar[str] = "arXiv 2505.21334"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "video, merging, staged"
    reads_grid: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "cokeshao/HoliTom", "e9b2972f")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "what is over the budget or missing is settled by attention",
            "the budget is kept exactly; the code rounds per window and frame",
            {"fill": "none"},
        ),
        Difference("tokens come in the order of the prompt", "the code puts static tokens first, which loses time"),
        Difference(
            "similarities for folding are of the tokens before any folding", "so that all can be folded at once"
        ),
        RENUMBERED,
    )
    waits: ClassVar[str] = "which patches stand still, and how long, follows from the features"

    keep: Keep = keep_option(0.15)
    threshold: float = option(0.8, "cosine above which a patch stands still")
    beta: float = option(0.6, "weight of a density peak in its mixture", low=0.0, high=1.0)
    clustered: float = option(0.0, "share of a frame's dynamic budget that is density peaks", low=0.0, high=1.0)
    inner: float = option(0.5, "what the inner stage keeps of that", low=0.0, high=1.0)
    fill: str = fill_option("attention")
    source: str = source_option("received")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("features"), Need("saliency", self.source))

    def schedule(self, layers: int) -> Schedule:
        if isinstance(self.keep, int):
            return [(0, self)]
        inner = self.derive(HoliTomInner, keep=1.0 if self.keep == 1.0 else max(self.inner, 1e-9))
        return [(0, self), *inner.schedule(layers)]

    def choose(self, view: View) -> Selection:
        k = self.budget(view)
        frames = view.frames(self.name)
        x = frames.spread(view["features"])
        attention = frames.spread(view["saliency"].float()).masked_fill(~frames.present, float("-inf"))
        together = frames.present[:, 1:] & frames.present[:, :-1]
        still = (same_patch_cosine(x) > self.threshold) & together
        found = []
        for i, present in enumerate(frames.present):
            stays = self._span(x[i], attention[i], present, still[i], self.fraction(view))
            whole = stays.all() if self.fill == "none" else stays.exactly(k, attention[i].flatten())
            found.append(frames.tokens(i, *whole))
        return stack_spans(found)

    def _span(self, x: Tensor, attention: Tensor, present: Tensor, still: Tensor, keep: float) -> Survivors:
        size = x.shape[1]
        stays = Survivors(present.numel(), x.device)
        windows, saved = best_windows(still)
        there = int(present.sum())
        ratio = min(1.0, keep / (max(there - saved, 1) / there))
        for first, last in windows:
            static = still[first : last - 1].all(0) if last - first > 1 else torch.zeros_like(present[0])
            count = round(int(static.sum()) * ratio)
            if count:
                patches = static.nonzero().flatten()
                mean = x[first:last, patches].double().mean(0)
                self._peaks(stays, mean, patches, range(first * size, last * size, size), count)
            for frame in range(first, last):
                own = (present[frame] & ~static).nonzero().flatten()
                count = min(math.ceil(len(own) * ratio - self.slack), len(own))
                attended = round(count * (1 - self.clustered))
                order = order_of(attention[frame, own])
                stays.keep(frame * size + own[order[:attended]])
                rest = own[order[attended:]].sort().values
                if count > attended:
                    self._peaks(stays, x[frame, rest], rest, range(frame * size, frame * size + 1), count - attended)
        return stays

    def _peaks(self, stays: Survivors, x: Tensor, patches: Tensor, starts: range, count: int) -> None:
        """Add `count` density peaks of x [m, d], the means over the frames that begin at the cells `starts`."""
        centres, group = (part[0] for part in density_peaks(x[None], count, min(NEIGHBOURS, count)))
        others = torch.ones_like(group, dtype=torch.bool)
        others[centres] = False
        size = group[others].bincount(minlength=count)
        share = torch.where(size > 0, self.beta, 1.0)
        mixed = torch.zeros(count, len(x), device=x.device)
        mixed[group[others], others.nonzero().flatten()] = ((1 - share) / size.clamp(min=1))[group[others]]
        mixed[torch.arange(count, device=x.device), centres] = share
        weights = torch.zeros(count, stays.count, device=x.device)
        for start in starts:
            weights[:, start + patches] = mixed / len(starts)
        stays.mix(starts[0] + patches[centres], weights)


def best_windows(still: Tensor) -> tuple[list[tuple[int, int]], int]:
    """Windows of frames (first, last + 1) that save most tokens if static places become one each, and how many.

    still: bool [T - 1, N], whether a patch stands still from one frame to the next. O(T^2 N).
    """
    count = len(still) + 1
    best, start = [0] * (count + 1), list(range(-1, count))
    for last in range(count):
        best[last + 1], start[last + 1] = best[last], last
        if last:
            alive = still[:last].flip(0).long().cumprod(0).sum(1).tolist()  # static from frame last - 1 - i on
            for i, patches in enumerate(alive):
                saved = best[last - 1 - i] + patches * (i + 1)
                if saved > best[last + 1]:
                    best[last + 1], start[last + 1] = saved, last - 1 - i
    windows, end = [], count
    while end:
        windows.append((start[end], end))
        end = start[end]
    return windows[::-1], best[count]


@dataclass(frozen=True)
class HoliTomInner(BudgetMethod, stage_of=HoliTom):
    """HoliTom inside the LLM: the tokens most attended by the last prompt token stay, and every other one is folded,
    one after the other, into its most similar one, (kept + dropped) / 2 each time. Similarities are of the tokens
    before any folding."""

    name: ClassVar[str] = "holitom_inner"

    keep: Keep = keep_option(0.5)
    needs: ClassVar[tuple[Need, ...]] = (Need("attention_row"), Need("hidden"))

    def schedule(self, layers: int) -> Schedule:
        return [(max(1, round(18 * layers / 28)), self)]

    def choose(self, view: View) -> Selection:
        return _fold(top_k(view.mean_over_heads("attention_row"), self.budget(view)), view["hidden"])


def _fold(index: Tensor, hidden: Tensor) -> Selection:
    """Every token that is not in `index` [S, k] goes into its most similar one, in order of the prompt."""
    n = hidden.shape[1]
    k = index.shape[1]
    unit = unit_rows(hidden)
    kept = unit.gather(1, index[..., None].expand(-1, -1, unit.shape[-1]))
    group = (unit @ kept.mT).argmax(-1)
    members = torch.nn.functional.one_hot(group, k).mT * ~mask_of(index, n)[:, None]
    later = members.flip(-1).cumsum(-1).flip(-1)  # this one and those folded after it
    weights = torch.where(members > 0, 0.5 ** later.double(), 0.0)
    return Selection(index, (weights + one_hot(index, n) * 0.5 ** members.sum(-1, keepdim=True).double()).float())
