"""Which rows a vision encoder still works on, between two stages before or inside it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokenprune.core.selection import indices_of, to_device
from tokenprune.engine.segments import Segments
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
    sizes: float32 [G], how many groups a mean stands for where later blocks weigh that; None: nobody does.
    """

    groups: Groups
    members: Tensor
    shape: tuple[int, int]
    alive: Tensor
    counts: list[int]
    stands: Tensor
    sizes: Tensor | None = None
    _followed: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _segments: dict[int, tuple[Tensor, Segments | None]] = field(default_factory=dict)

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

    def take(
        self, alive: Tensor, counts: list[int], stands: Tensor | None = None, sizes: Tensor | None = None
    ) -> EncoderRows:
        """The rows of which only the groups `alive`, bool [G], are left, `counts` of each segment.

        stands: int64 [G], for what goes a group that is left of the same segment; default: the one before it.
        """
        if stands is None:
            stands = self._nearest(alive)
        # What stood for a group may have gone now; then what stands for that stands for both.
        return replace(
            self, alive=alive, counts=counts, stands=stands[self.stands], sizes=sizes, _followed={}, _segments={}
        )

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
        rank = (self.left.long().cumsum(1) - 1).flatten()
        members = self.members
        found = rank.clone()
        stands = members[self.stands]
        # Of a sequence of which nothing is left any row will do: its groups are gone from the prompt too.
        found[members] = torch.where(stands // self.shape[1] == members // self.shape[1], rank[stands], 0)
        return found.view(self.shape)

    def shorten(self, x: Tensor) -> Tensor:
        """Of x [B, W, ...] the rows that are left [B, K, ...]."""
        return gather_each(x, self.index)

    def restore(self, x: Tensor) -> Tensor:
        """All rows [B, W, ...] from those that are left [B, K, ...]; of groups that are gone, what stands for them."""
        return gather_each(x, self.spread) if self.shortened else x

    def index_in(self, before: EncoderRows) -> Tensor:
        """int64 [B, K]: which of the rows that were left `before` are."""
        if not before.shortened:
            return self.index
        return (before.left.long().cumsum(1) - 1).clamp(min=0).gather(1, self.index)

    @cached_property
    def row_sizes(self) -> Tensor:
        """float32 [B, K]: how many groups the group of each row stands for; 1 for rows of no group."""
        whole = torch.ones(self.shape[0] * self.shape[1], device=self.alive.device)
        if self.sizes is not None:
            whole[self.members] = self.sizes[:, None].expand_as(self.members)
        return self.shorten(whole.view(self.shape))

    def follow(self, value: Any) -> Any:
        """An argument of a block (cos and sin, boundaries of sequences, a mask) for the rows that are left; what does
        not go by rows stays."""
        if isinstance(value, tuple):
            return tuple(self.follow(one) for one in value)
        if not isinstance(value, Tensor):
            return value
        known = self._followed.get(id(value))
        if known is None or known[0] is not value:
            known = self._followed[id(value)] = value, self._follow(value)
        return known[1]

    def segments(self, bounds: Tensor) -> Segments | None:
        """The sequences between followed boundaries, where all are better attended to at once."""
        if id(bounds) not in self._segments:
            unit = self.members.shape[1]
            known = len(bounds) == len(self.counts) + 1 and all(self.counts)
            lengths = [unit * count for count in self.counts] if known else bounds.diff().tolist()
            self._segments[id(bounds)] = bounds, Segments.of(lengths, bounds)
        return self._segments[id(bounds)][1]

    def _follow(self, value: Tensor) -> Tensor:
        sequences, width = self.shape
        if value.ndim == 1 and not value.is_floating_point() and sequences == 1 and len(value) != width:
            before = torch.nn.functional.pad(self.left[0].long().cumsum(0), (1, 0))
            own = before[value.long()].to(value.dtype)
            # No sequence may be empty. Frames are known not to be; about windows the host has to look.
            return own if all(self.counts) and len(value) == len(self.counts) + 1 else own.unique_consecutive()
        if value.ndim == 4 and value.shape[-1] == value.shape[-2] == width:
            index = self.index[:, None]
            columns = value.gather(-1, index[..., None, :].expand(*value.shape[:-1], -1))
            return columns.gather(-2, index[..., None].expand(*columns.shape[:-2], -1, columns.shape[-1]))
        if value.ndim >= 2 and value.shape[0] == width and sequences == 1:
            return value[self.index[0]]
        if value.ndim >= 2 and value.shape[1] == width:
            return self.shorten(value.expand(sequences, *value.shape[1:]) if len(value) == 1 else value)
        return value

    def restore_groups(self, x: Tensor) -> Tensor:
        """The same for one row of each group [groups that are left, ...], in the order of the rows; B is 1 then."""
        unit = self.members.shape[1]
        return x[self.spread[0, ::unit] // unit]


def gather_each(x: Tensor, index: Tensor) -> Tensor:
    """Of x [B, W, ...] the rows int64 [B or 1, K] of each sequence."""
    index = index.expand(len(x), -1)
    return x.gather(1, index.view(*index.shape, *[1] * (x.ndim - 2)).expand(*index.shape, *x.shape[2:]))
