"""A video as frames x patches, and where one scene ends and the next begins."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.core.diversity import unit_rows
from tokenprune.core.selection import ranks


@dataclass(frozen=True)
class Frames:
    """Tokens of S spans as T frames of N patches each; where an earlier stage removed a token it is empty.

    cell: int64 [S, n], frame * N + patch of every token that is left. present: bool [S, T, N].
    """

    count: int
    size: int
    cell: Tensor
    present: Tensor

    @classmethod
    def of(cls, frame: Tensor, patch: Tensor, count: int, size: int) -> Frames:
        """From the frame of every token and its patch there, int64 [S, n] each."""
        cell = frame * size + patch
        present = torch.zeros(len(cell), count * size, dtype=torch.bool, device=cell.device)
        return cls(count, size, cell, present.scatter(1, cell, True).unflatten(1, (count, size)))

    @property
    def frame(self) -> Tensor:
        """int64 [S, n]: the frame of every token."""
        return self.cell // self.size

    def spread(self, x: Tensor) -> Tensor:
        """Values [S, n, ...] of tokens as [S, T, N, ...], zero where it is empty."""
        whole = x.new_zeros(len(x), self.count * self.size, *x.shape[2:])
        at = self.cell.reshape(*self.cell.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
        return whole.scatter(1, at, x).unflatten(1, (self.count, self.size))

    def tokens(self, span: int, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The same selection of one span in tokens: index [k] and weights [k, n] of cells [k] and [k, T * N]."""
        own = torch.full((self.count * self.size,), -1, device=index.device)
        own[self.cell[span]] = torch.arange(self.cell.shape[1], device=index.device)
        return own[index], weights[:, self.cell[span]]

    def taken(self, whole: Tensor) -> Tensor:
        """Values [S, T, N] as [S, n]: those of the tokens that are left."""
        return whole.flatten(1).gather(1, self.cell)


def same_patch_cosine(x: Tensor) -> Tensor:
    """Cosine of every token with that at the same patch of the frame before; [S, T - 1, N] of x [S, T, N, d]."""
    unit = unit_rows(x)
    return (unit[:, 1:] * unit[:, :-1]).sum(-1)


def scenes(similarity: Tensor, least: int, threshold: float) -> Tensor:
    """int64 [S, T]: the scene of every frame, 0, 1, ... in order, from the cosines of neighbouring frames [S, T - 1].

    A scene ends where the cosine is below `threshold`, and at the `least` - 1 smallest cosines (of equal ones the
    first), so that there are at least `least` scenes, or T of them.
    """
    cut = (similarity < threshold) | (ranks(-similarity) < least - 1)
    return torch.cat([cut.new_zeros(len(cut), 1), cut], dim=1).long().cumsum(1)


def stretches(label: Tensor) -> list[tuple[int, int]]:
    """First and last + 1 of every run of equal values in `label` [T]."""
    ends = (label.diff() != 0).nonzero().flatten().add(1).tolist()
    return list(zip([0, *ends], [*ends, len(label)], strict=True))


def frame_means(x: Tensor, present: Tensor) -> Tensor:
    """Mean over the tokens of every frame; [S, T, d] of x [S, T, N, d], zero for an empty frame. float32 for halves,
    whose sums do not fit."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    weight = present[..., None].to(x.dtype)
    return (x * weight).sum(2) / weight.sum(2).clamp(min=1)
