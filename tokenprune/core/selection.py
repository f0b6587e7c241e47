"""What a method returns, and the ranking that methods share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.core.trace import note_scores
from tokenprune.errors import BadInput
from tokenprune_kernels import selection


@dataclass(frozen=True)
class Selection:
    """Tokens that survive.

    index: int64 [S, k] (or [k] without spans in front), ascending and unique where valid.
    weights: optional float [S, k, n] (or [k, n]): survivor i becomes `weights[i] @ x` instead of `x[index[i]]`.
    valid: optional bool [S, k]: False at the end of a span that keeps fewer tokens than the others.
    anchors: optional int64 [S, n]: the surviving token that stands for each token where a place needs all of them, as
    behind the vision encoder; by default the nearest one before.
    neighbours: optional int64 [S, n, m]: surviving tokens by whose mean change each token that goes comes back behind
    the vision encoder, so that nothing is lost (`Method.returns`).
    """

    index: Tensor
    weights: Tensor | None = None
    valid: Tensor | None = None
    anchors: Tensor | None = None
    neighbours: Tensor | None = None

    def apply(self, x: Tensor) -> Tensor:
        """Gather (or merge) the rows of `x` [S, n, ...] (or [n, ...]) into [S, k, ...] (or [k, ...])."""
        spans = self.index.ndim - 1
        if x.ndim <= spans or x.shape[:spans] != self.index.shape[:-1]:
            raise BadInput(
                f"x has shape {list(x.shape)}, which does not fit an index of shape {list(self.index.shape)}."
            )
        if self.weights is not None:
            flat = x.flatten(spans + 1) if x.ndim > spans + 1 else x.unsqueeze(-1)
            merged = self.weights.to(flat.dtype) @ flat
            return merged.reshape(*self.index.shape, *x.shape[spans + 1 :])
        shape = self.index.shape + (1,) * (x.ndim - spans - 1)
        return x.gather(spans, self.index.reshape(shape).expand(*self.index.shape, *x.shape[spans + 1 :]))

    @classmethod
    def of(cls, mask: Tensor) -> Selection:
        """The True indices of `mask` [S, n], however many each span has (counting them waits for the device)."""
        counts = mask.sum(-1)
        width = int(counts.max())
        there = torch.arange(width, device=mask.device) < counts[:, None]
        return cls(selection.top_k(mask, width, counts), valid=there)

    def span(self, i: int) -> tuple[Tensor, Tensor | None]:
        """Index [k'] and weights [k', n] of span i alone, without what is not valid."""
        if self.valid is None:
            return self.index[i], None if self.weights is None else self.weights[i]
        real = self.valid[i]
        return self.index[i][real], None if self.weights is None else self.weights[i][real]


def top_k(scores: Tensor, k: int) -> Tensor:
    """Ascending int64 index [..., k] of the `k` highest scores [..., n]; of equal scores the lowest index wins."""
    *spans, n = scores.shape
    k = min(k, n)
    note_scores(scores)
    return selection.top_k(scores.reshape(math.prod(spans), n), k).reshape(*spans, k)


def evenly(n: int, device: torch.device) -> Tensor:
    """float [n] in [0, 1): scores whose k highest lie evenly over the n tokens, for every k: fractional parts of the
    multiples of the golden ratio."""
    return torch.arange(n, device=device) * 0.618034 % 1


def order_of(scores: Tensor) -> Tensor:
    """int64 [..., n]: indices from the highest score to the lowest; of equal scores the lowest index comes first."""
    note_scores(scores)
    return scores.sort(dim=-1, descending=True, stable=True).indices


def ranks(scores: Tensor) -> Tensor:
    """int64 [..., n]: 0 for the highest score, n - 1 for the lowest; of equal scores the lowest index ranks first."""
    return order_of(scores).argsort(dim=-1)


def mask_of(index: Tensor, n: int) -> Tensor:
    """bool [..., n]: True at the indices `index` [..., k]."""
    return torch.zeros(*index.shape[:-1], n, dtype=torch.bool, device=index.device).scatter(-1, index, True)


def indices_of(mask: Tensor, k: int) -> Tensor:
    """Ascending int64 [..., k] where `mask` [..., n], which must be k in each row."""
    return top_k(mask, k)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [S, k] of x [S or 1, n, d]."""
    x = x.expand(index.shape[0], -1, -1)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def one_hot(index: Tensor, n: int) -> Tensor:
    """float32 [..., k, n]: row i picks token `index[i]`."""
    return torch.zeros(*index.shape, n, device=index.device).scatter_(-1, index[..., None], 1.0)


def to_device(values: Sequence[Any], device: torch.device) -> Tensor:
    """Numbers that the host knows (or equally long rows of them), on the device, without waiting for it."""
    return torch.tensor(values).to(device, non_blocking=True)
