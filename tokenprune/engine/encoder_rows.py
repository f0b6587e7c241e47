"""Which rows a vision encoder still works on, between two stages before or inside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from tokenprune.core.selection import indices_of, to_device
from tokenprune.families.base import Groups


@dataclass(frozen=True, eq=False)
class EncoderRows:
    """The rows of one call of an encoder; never changed in place.

    groups: of the whole call, on the host.
    members: int64 [G, u], theirs on the device.
    shape: (sequences B, rows W of each), before any stage.
    alive: bool [G], the groups that are left.
    counts: how many are left of each segment.
    stands: int64 [G], the group whose rows stand for a group where all are wanted: itself while it is left.
    """

    groups: Groups
    members: Tensor
    shape: tuple[int, int]
    alive: Tensor
    counts: list[int]
    stands: Tensor

    @classmethod
    def of_call(cls, groups: Groups, shape: tuple[int, int], device: torch.device) -> EncoderRows:
        """All rows of a call."""
        members = groups.members.to(device, non_blocking=True)
        count = len(members)
        whole = [h * w for h, w in groups.grids]
        return cls(
            groups=groups,
            members=members,
            shape=shape,
            alive=torch.ones(count, dtype=torch.bool, device=device),
            counts=whole,
            stands=torch.arange(count, device=device),
        )

    @property
    def shortened(self) -> bool:
        """Whether a group has gone."""
        return sum(self.counts) < len(self.alive)

    def take(self, alive: Tensor, counts: list[int], stands: Tensor | None = None) -> EncoderRows:
        """The rows of which only the groups `alive`, bool [G], are left, `counts` of each segment.

        stands: int64 [G], for what goes a group that is left of the same segment; default: the one before it.
        """
        if stands is None:
            stands = self._nearest(alive)
        # What stood for a group may have gone now; then what stands for that stands for both.
        return replace(self, alive=alive, counts=counts, stands=stands[self.stands])

    def _nearest(self, alive: Tensor) -> Tensor:
        """int64 [G]: for each group the last one up to it that is left of its segment, else the next one."""
        own = torch.arange(len(alive), device=alive.device)
        sizes = to_device([h * w for h, w in self.groups.grids], own.device)
        first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes, output_size=len(own))
        before = torch.where(alive, own, -1).cummax(0).values
        after = torch.where(alive, own, len(own)).flip(0).cummin(0).values.flip(0)
        return torch.where((before >= first) | (after == len(own)), before, after)

    @cached_property
    def left(self) -> Tensor:
        """bool [B, W]: the rows that are left; those of no group (CLS) always are."""
        left = torch.ones(self.shape[0] * self.shape[1], dtype=torch.bool, device=self.alive.device)
        left[self.members] = self.alive[:, None].expand_as(self.members)
        return left.view(self.shape)

    @cached_property
    def lengths(self) -> list[int]:
        """Rows that are left of each sequence."""
        unit = self.members.shape[1]
        per_sequence = len(self.counts) // self.shape[0]
        others = self.shape[1] - unit * len(self.alive) // self.shape[0]
        return [
            others + unit * sum(self.counts[b * per_sequence : (b + 1) * per_sequence]) for b in range(self.shape[0])
        ]

    @cached_property
    def index(self) -> Tensor:
        """int64 [B, K]: the rows that are left of each sequence, ascending; rows that are gone fill up at the end."""
        if len(set(self.lengths)) == 1:
            return indices_of(self.left, self.lengths[0])
        return (~self.left).long().argsort(dim=1, stable=True)[:, : max(self.lengths)]

    @cached_property
    def patches(self) -> Tensor:
        """int64 [K]: of patches as the processor lays them, group by group in reading order, those that are left."""
        unit = self.members.shape[1]
        return indices_of(self.alive.repeat_interleave(unit), unit * sum(self.counts))

    @cached_property
    def padding(self) -> Tensor | None:
        """bool [B, K]: what fills up; None where the sequences are of one length."""
        if len(set(self.lengths)) == 1:
            return None
        lengths = to_device(self.lengths, self.index.device)
        return torch.arange(self.index.shape[1], device=self.index.device) >= lengths[:, None]

    @cached_property
    def spread(self) -> Tensor:
        """int64 [B, W]: for every row, which of those that are left stands for it."""
        place = (self.left.long().cumsum(1) - 1).flatten()
        members = self.members
        found = place.clone()
        stands = members[self.stands]
        # Of a sequence of which nothing is left any row will do: its groups are gone from the prompt too.
        found[members] = torch.where(stands // self.shape[1] == members // self.shape[1], place[stands], 0)
        return found.view(self.shape)

    def shorten(self, x: Tensor) -> Tensor:
        """Of x [B, W, ...] the rows that are left [B, K, ...]."""
        return _take(x, self.index)

    def restore(self, x: Tensor) -> Tensor:
        """All rows [B, W, ...] from those that are left [B, K, ...]; of groups that are gone, what stands for them."""
        return _take(x, self.spread) if self.shortened else x

    def restore_groups(self, x: Tensor) -> Tensor:
        """The same for one row of each group [groups that are left, ...], in the order of the rows; B is 1 then."""
        unit = self.members.shape[1]
        return x[self.spread[0, ::unit] // unit]


def _take(x: Tensor, index: Tensor) -> Tensor:
    index = index.expand(len(x), -1)
    return x.gather(1, index.view(*index.shape, *[1] * (x.ndim - 2)).expand(*index.shape, *x.shape[2:]))
