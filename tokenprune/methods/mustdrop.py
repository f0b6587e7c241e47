"""MustDrop's merging inside the vision encoder: windows of patches that are alike become their mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import unit_rows
from tokenprune.core.merging import mean_weights
from tokenprune.core.selection import Selection, evenly, ranks, top_k
from tokenprune.methods.base import Method, Schedule, View, keep_option, option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.methods.place import Vision
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class MustDrop(Method):
    """The first stage of MustDrop (Liu et al., arXiv 2411.10803), before block 1 of the vision encoder.

    A picture is cut into windows of `window` x `window` groups. A window whose groups are alike, the mean of the
    cosines of all pairs at least `threshold`, goes on as its mean at the place of its first group; groups outside whole
    windows stay. With `keep` the windows most alike merge until k groups are left, the last of them in part; once all
    have merged, an even choice of what is left stays. The paper's stages inside the LLM and its decoding are not here.
    """

    name: ClassVar[str] = "mustdrop"
    paper: ClassVar[str] = "arXiv 2411.10803"
    year: ClassVar[int] = 2024
    kind: ClassVar[str] = "merging"
    reads_grid: ClassVar[bool] = True
    adaptive: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "liuting20/MustDrop", "909afa53")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("`keep` merges the windows most alike", "so that a budget can be asked for"),
        Difference("pictures of one call merge as many windows as each has", "the code takes the least of a batch"),
        Difference(
            "a mean stands at the place of its window's first group", "so that position embeddings have a place"
        ),
        Difference("the first stage alone", "the others act inside the LLM, by rules that were not read"),
    )
    needs: ClassVar[tuple[Need, ...]] = (Need("vision_states"),)

    keep: Keep | None = keep_option(None, "what survives; none: whatever `threshold` leaves")
    threshold: float = option(0.8, "mean cosine from which a window becomes its mean")
    window: int = option(3, "groups along a side of a window", low=2)

    def schedule(self, layers: int) -> Schedule:
        return [(Vision(1), self)]

    def select(self, view: View) -> Selection:
        n, size = view.count, self.window**2
        own = torch.arange(n, device=view.device)
        members, alike = self._windows(view)
        if self.keep is None:
            merged = (alike >= self.threshold).long() * size
        else:
            k = self.budget(view)
            whole, rest = divmod(n - k, size - 1)
            rank = ranks(alike)
            merged = torch.where(rank < whole, size, torch.where(rank == whole, rest + 1, 0))
        inside = (torch.arange(size, device=own.device) < merged[..., None]) & (merged[..., None] > 1)
        stands = own.expand(view.spans, -1).clone()
        where = members.flatten().expand(view.spans, -1)
        first = members[:, :1].expand_as(members).flatten().expand(view.spans, -1)
        stands = stands.scatter(1, where, torch.where(inside.flatten(1), first, where))
        stays = stands == own
        chosen = Selection.of(stays) if self.keep is None else Selection(top_k(stays * 2 + evenly(n, own.device), k))
        return self._mix(chosen, stands, n)

    def _mix(self, chosen: Selection, stands: Tensor, n: int) -> Selection:
        """With the weights of every mean; groups whose mean was not chosen are lost."""
        index, count = chosen.index, chosen.index.shape[1]
        slot = torch.full((len(index), n), -1, device=index.device)
        number = torch.arange(count, device=index.device).expand_as(index)
        real = torch.ones_like(index, dtype=torch.bool) if chosen.valid is None else chosen.valid
        slot = slot.scatter_reduce(1, index, torch.where(real, number, -1), "amax")
        group = slot.gather(1, stands)
        anchors = torch.where(group < 0, index[:, :1], stands) if count else None
        return Selection(index, mean_weights(index, group), chosen.valid, anchors)

    def _windows(self, view: View) -> tuple[Tensor, Tensor]:
        """int64 [W, window**2] the groups of each window, and float64 [S, W] how alike they are."""
        members, alike, start = [], [], 0
        for x in view.pictures("vision_states", self.name):
            _, t, h, w, _ = x.shape
            high, wide = h // self.window * self.window, w // self.window * self.window
            unit = unit_rows(x)[:, :, :high, :wide]
            number = torch.arange(start, start + t * h * w, device=x.device).view(t, h, w)[:, :high, :wide]
            start += t * h * w
            shape = (t, high // self.window, self.window, wide // self.window, self.window)
            count = t * shape[1] * shape[3]
            members.append(number.reshape(shape).transpose(2, 3).reshape(count, self.window**2))
            cells = unit.reshape(len(x), *shape, x.shape[-1]).transpose(3, 4)
            whole = cells.reshape(len(x), count, self.window**2, x.shape[-1]).sum(2)
            alike.append(whole.square().sum(-1))
        size = self.window**2
        return torch.cat(members), (torch.cat(alike, dim=1) - size) / (size * (size - 1))
