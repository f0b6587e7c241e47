"""FrameFusion: tokens that resemble their predecessor in time merge inside the LLM, then the least attended go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep, n_keep
from tokenprune.core.diversity import unit_rows
from tokenprune.core.frames import Frames
from tokenprune.core.merging import Survivors, stack_spans
from tokenprune.core.selection import Selection, indices_of, order_of, top_k
from tokenprune.methods.base import Method, Schedule, View, keep_option, option, rounding_option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class Fusion(Method):
    """What every stage of FrameFusion does."""

    goes_on: ClassVar[bool] = False  # whether it stands behind another one, which may have done all there is to do

    keep: Keep = keep_option(0.3, "what layers process, on average: a fraction, or a number of tokens")
    rounding: str = rounding_option("up")
    similar: float = option(0.6, "cosine from which neighbours in time merge")
    least: float = option(0.1, "share of merged tokens below which the next layer prunes", low=0.0, high=1.0)

    def prunes(self, view: View) -> bool:
        """Whether attention decides, not likeness."""
        return False

    def select(self, view: View) -> Selection:
        n = view.count
        if self.keep == 0 or (not view.layers and self.budget(view) == n):
            return view.first(0 if self.keep == 0 else n)
        if not view.layers:
            return self._at_once(view, n - self.budget(view))
        surplus = self._surplus(view)
        if surplus <= 0:
            return view.first(n)
        if self.prunes(view):
            return Selection(top_k(view.mean_over_heads("attention_row"), max(1, round(n - surplus))))
        similarity, before = predecessors(view["hidden"], view.frames(self.name))
        order = order_of(similarity)
        alike = (similarity >= self.similar).sum(-1).clamp(max=int(surplus + 1e-9)).tolist()
        return stack_spans([merge_runs(order[i, :m], before[i], n).all() for i, m in enumerate(alike)])

    def _at_once(self, view: View, gone: int) -> Selection:
        """As many tokens less, nothing coming later that could finish: the most similar pairs merge."""
        similarity, before = predecessors(view["hidden"], view.frames(self.name))
        order = order_of(similarity)
        pairs = (before >= 0).sum(-1).clamp(max=gone).tolist()
        merged = [merge_runs(order[i, :m], before[i], view.count) for i, m in enumerate(pairs)]
        return stack_spans([one.exactly(view.count - gone, -similarity[i]) for i, one in enumerate(merged)])

    def _surplus(self, view: View) -> float:
        """Tokens that must go now, so that all layers process `keep` on average; 0 once a stage has met that."""
        total = view.total or view.count
        mean = self.keep * total if isinstance(self.keep, float) else n_keep(self.keep, total)
        processed = (total, *view.layers_before)
        surplus = 0.0
        for layer, n in enumerate(processed):
            wanted = (mean * view.layers - sum(processed[1 : layer + 1])) / (view.layers - layer)
            surplus = n - max(wanted, 1.0)
            met = layer + 1 < len(processed) and n - processed[layer + 1] >= int(surplus + 1e-9)
            if self.goes_on and met:
                return 0.0
        return surplus


@dataclass(frozen=True)
class FrameFusion(Fusion):
    """FrameFusion (Fu et al., ICCV 2025, arXiv 2501.01986).

    `keep` is the mean over the layers of what they process. Before every layer from the first on, the hidden state of a
    token is compared with the one before it in time at the same place. u is the share of the tokens there are that must
    go now for the later layers to meet the mean. If enough pairs have a cosine of at least `similar`, the int(u * n)
    most similar ones merge and the method is done; else all of them merge, and once a layer has merged less than
    `least` of its tokens, the next one keeps the round(n * (1 - u)) most attended by the last prompt token. Runs of
    merging tokens become the plain mean of the run at the place of its first token.

    It begins before the LLM; `framefusion_later` goes on before the layers that follow, and `framefusion_last` prunes
    what still must go, in `within` layers. The published code goes on through all layers, counts 28 of them whatever
    the model, and does so between attention and MLP of a layer; here a stage stands between layers, after the MLP.
    Without a model (`select`) it is done in one step: the most similar pairs merge, whatever their cosine, and k is k.
    """

    name: ClassVar[str] = "framefusion"
    paper: ClassVar[str] = "arXiv 2501.01986"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "video, merging, staged"
    reads_grid: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "thu-nics/FrameFusion", "fbec1d2e")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "a stage stands between layers, after the MLP", "the code merges between attention and MLP, inside a layer"
        ),
        Difference(
            "it ends after `within` layers",
            "the code goes on through all layers and counts 28 of them whatever the model",
        ),
    )
    waits: ClassVar[str] = "how many tokens are like the one before follows from the hidden states"

    within: int = option(8, "layers in which it must be done", low=1)

    needs: ClassVar[tuple[Need, ...]] = (Need("hidden"),)

    def schedule(self, layers: int) -> Schedule:
        last = min(self.within, layers) - 1
        later = [(at, self.derive(FrameFusionLater if at < last else FrameFusionLast)) for at in range(1, last + 1)]
        return [(0, self), *later]


@dataclass(frozen=True)
class FrameFusionLater(Fusion, stage_of=FrameFusion):
    """FrameFusion inside the LLM: merges, or prunes once the layer before has merged too little."""

    name: ClassVar[str] = "framefusion_later"
    reads_grid: ClassVar[bool] = True
    waits: ClassVar[str] = FrameFusion.waits
    goes_on: ClassVar[bool] = True
    needs: ClassVar[tuple[Need, ...]] = (Need("hidden"), Need("attention_row"))

    def schedule(self, layers: int) -> Schedule:
        return [(1, self)]

    def prunes(self, view: View) -> bool:
        processed = (view.total, *view.layers_before)
        if len(processed) < 2:  # no layer has run
            return False
        return processed[-2] - processed[-1] < self.least * processed[-2]


@dataclass(frozen=True)
class FrameFusionLast(FrameFusionLater, stage_of=FrameFusion):
    """FrameFusion where it must be done: prunes what still must go."""

    name: ClassVar[str] = "framefusion_last"
    reads_grid: ClassVar[bool] = False

    def prunes(self, view: View) -> bool:
        return True


def predecessors(x: Tensor, frames: Frames) -> tuple[Tensor, Tensor]:
    """For every token of x [S, n, d] the token before it in time at its place, int64 [S, n], -1 for the first one, and
    their cosine float64 [S, n], -2 for the first one."""
    patch = frames.cell % frames.size
    order = (patch * frames.count + frames.frame).argsort(dim=-1, stable=True)
    sorted_patch = patch.gather(1, order)
    same = torch.zeros_like(sorted_patch, dtype=torch.bool)
    same[:, 1:] = sorted_patch[:, 1:] == sorted_patch[:, :-1]
    previous = torch.where(same, order.roll(1, 1), -1)
    before = torch.empty_like(previous).scatter(1, order, previous)
    unit = unit_rows(x)
    other = unit.gather(1, before.clamp(min=0)[..., None].expand(-1, -1, unit.shape[-1]))
    return torch.where(before >= 0, (unit * other).sum(-1), -2.0), before


def merge_runs(gone: Tensor, before: Tensor, n: int) -> Survivors:
    """What is left of n tokens when those in `gone` [m] join their predecessors `before` [n]: means of the runs."""
    parent = torch.arange(n, device=gone.device)
    parent[gone] = before[gone]
    for _ in range(max(1, n).bit_length()):
        parent = parent[parent]
    mask = torch.ones(n, dtype=torch.bool, device=gone.device)
    mask[gone] = False
    index = indices_of(mask.long(), n - len(gone))
    group = torch.zeros(n, dtype=torch.long, device=gone.device)
    group[index] = torch.arange(len(index), device=gone.device)
    own = group[parent]
    weights = torch.zeros(len(index), n, device=gone.device)
    weights[own, torch.arange(n, device=gone.device)] = 1 / own.bincount(minlength=len(index))[own].float()
    stays = Survivors(n, gone.device)
    stays.mix(index, weights)
    return stays
