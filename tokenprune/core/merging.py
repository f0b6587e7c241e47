"""Merge weights: which mixture of all tokens each survivor becomes."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.core.selection import one_hot, ranked


def averaged(index: Tensor, group: Tensor, weight: Tensor | None = None) -> Tensor:
    """Weights [S, k, n]: survivor `index[i]` becomes the mean of the tokens whose `group` is i, itself included.

    index: int64 [S, k]; group: int64 [S, n], -1 for tokens that are lost; weight: optional [S, n], of each token in
    its mean.
    """
    members = group[:, None] == torch.arange(index.shape[1], device=group.device)[:, None]
    share = members.float() if weight is None else members * weight[:, None].float()
    total = share.sum(-1, keepdim=True)
    return torch.where(total > 0, share / total.clamp(min=1e-12), one_hot(index, group.shape[1]))


def in_order(index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Survivors [S, k] and their weights [S, k, n] by ascending index."""
    index, order = index.sort(dim=-1)
    return index, weights.gather(1, order[..., None].expand_as(weights))


def density_peaks(x: Tensor, clusters: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Density-peak clustering with nearest neighbours (DPC-KNN); no noise, so ties go to the lowest index.

    x: [S, n, d]. Distances are Euclidean over sqrt(d); density is exp(-mean of the squares of the `neighbours` smallest
    distances, the token's own 0 included); a centre has a high density and is far from denser tokens. Returns centres
    int64 [S, clusters], best first, and for each token the centre it is nearest to, int64 [S, n] in 0 ... clusters - 1.
    """
    n = x.shape[1]
    distance = torch.cdist(x.double(), x.double()) / x.shape[-1] ** 0.5
    nearest = distance.topk(min(neighbours, n), dim=-1, largest=False).values
    density = (-nearest.square().mean(-1)).exp()
    higher = density[:, None, :] > density[..., None]
    earlier = torch.ones(n, n, dtype=torch.bool, device=x.device).tril(-1)
    higher |= (density[:, None, :] == density[..., None]) & earlier
    farthest = distance.amax((-2, -1))[:, None]
    gap = distance.masked_fill(~higher, float("inf")).amin(-1)
    gap = torch.where(gap.isinf(), farthest, gap)
    centres = ranked(density * gap)[:, :clusters]
    to_centres = distance.gather(2, centres[:, None].expand(-1, n, -1))
    group = to_centres.argmin(-1)
    own = torch.arange(clusters, device=x.device).expand(len(x), -1)
    return centres, group.scatter(1, centres, own)


def bipartite(metric: Tensor, merged: int, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """One round of bipartite soft matching (ToMe, Bolya et al., ICLR 2023).

    metric: [S, n, e]; sizes: [S, n], tokens that each one stands for. Even tokens look for their most similar odd one;
    the `merged` (at most ceil(n / 2)) most similar pairs become their size-weighted mean. Returns the places that stay,
    int64 [S, n - merged], and weights [S, n - merged, n].
    """
    n = metric.shape[1]
    even, odd = metric[:, ::2], metric[:, 1::2]
    similarity, partner = (even @ odd.mT).max(-1)
    order = ranked(similarity)
    gone, target = order[:, :merged], partner.gather(1, order[:, :merged])
    belongs = torch.arange(n, device=metric.device).repeat(len(metric), 1)
    belongs = belongs.scatter(1, 2 * gone, 2 * target + 1)
    stays = torch.ones(len(metric), n, dtype=torch.long, device=metric.device).scatter(1, 2 * gone, 0)
    index = ranked(stays)[:, : n - merged].sort(dim=-1).values
    place = stays.cumsum(1) - 1
    return index, averaged(index, place.gather(1, belongs), sizes)
