"""What a method returns, and the primitives that methods share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.errors import BadInput


@dataclass(frozen=True)
class Selection:
    """Tokens that survive.

    index: int64 [S, k] (or [k] without spans in front), ascending and unique.
    weights: optional float [S, k, n] (or [k, n]): survivor i becomes `weights[i] @ x` instead of `x[index[i]]`.
    """

    index: Tensor
    weights: Tensor | None = None

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


def top_k(scores: Tensor, k: int) -> Tensor:
    """Ascending int64 index [..., k] of the `k` highest scores [..., n]; of equal scores the lowest index wins."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :k].sort(dim=-1).values


def max_min(distance: Tensor, k: int) -> Tensor:
    """Greedy max-min diversity (k-center) over `distance` [S, n, n]; int64 [S, k] in order of picking.

    First the token farthest from its nearest neighbour, then always the token whose nearest chosen token is farthest.
    A chosen token is never chosen again; of equal candidates the lowest index wins. O(n k) after the distances.
    """
    n = distance.shape[-1]
    own = torch.eye(n, dtype=torch.bool, device=distance.device)
    nearest = distance.masked_fill(own, float("inf")).amin(-1)
    picks = []
    for _ in range(k):
        pick = nearest.argmax(-1)
        picks.append(pick)
        row = distance.gather(1, pick[:, None, None].expand(-1, 1, n)).squeeze(1)
        nearest = row if len(picks) == 1 else torch.minimum(nearest, row)
        nearest = nearest.scatter(1, pick[:, None], -1.0)
    return torch.stack(picks, dim=-1) if picks else distance.new_empty(len(distance), 0, dtype=torch.long)
