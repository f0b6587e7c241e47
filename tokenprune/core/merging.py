"""Merge weights: which mixture of all tokens each survivor becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune.core.selection import Selection, one_hot, order_of, ranks, to_device, top_k
from tokenprune_kernels.density import peak_scores

DENSE = 16  # with more than one weight in so many, a plain product is faster than sums of rows


@dataclass
class Survivors:
    """What stays of one span of `count` tokens, put together piece by piece: tokens as they are, and mixtures."""

    count: int
    device: torch.device
    index: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)

    def keep(self, index: Tensor) -> None:
        """Tokens int64 [m] as they are."""
        self.mix(index, one_hot(index, self.count))

    def mix(self, index: Tensor, weights: Tensor) -> None:
        """At the places `index` [m] the mixtures `weights` [m, count] of all tokens."""
        self.index.append(index)
        self.weights.append(weights.float())

    def exactly(self, k: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Index [k] and weights [k, count] by ascending index: those there are and the best of the rest by `scores`
        [count], or, where there are too many, the best of those there are."""
        index, weights = self.all()
        kept = torch.zeros_like(scores, dtype=torch.bool).index_fill(0, index, True)
        chosen = top_k(kept * self.count - ranks(scores[None])[0], k)
        whole = one_hot(chosen, self.count)
        old = kept[chosen]
        rank = torch.zeros(self.count, dtype=torch.long, device=index.device)
        rank[index] = torch.arange(len(index), device=index.device)
        whole[old] = weights[rank[chosen[old]]]
        return chosen, whole

    def all(self) -> tuple[Tensor, Tensor]:
        """Index [m] and weights [m, count] of everything that stays, by ascending index."""
        index = [torch.empty(0, dtype=torch.long, device=self.device), *self.index]
        weights = [torch.empty(0, self.count, device=self.device), *self.weights]
        ordered, order = torch.cat(index).sort()
        return ordered, torch.cat(weights)[order]


def mixtures(
    targets: Tensor, members: Tensor, group: Tensor, own: Callable[[Tensor], Tensor], count: int
) -> tuple[Tensor, Tensor]:
    """The tokens `targets` [c] and the weights [c, count] of what they become: themselves and the mean of their group.

    members: int64 [m] tokens, of which `group` [m] says which target they join. own: from the sizes [c] of the groups
    the weight of each target itself; it is 1 where nothing joins.
    """
    weights = torch.zeros(len(targets), count, device=targets.device)
    weights[group, members] = 1
    size = weights.sum(-1)
    share = torch.where(size > 0, own(size), 1.0)
    weights *= ((1 - share) / size.clamp(min=1))[:, None]
    weights[torch.arange(len(targets), device=targets.device), targets] += share
    return targets, weights


def stack_spans(spans: list[tuple[Tensor, Tensor]]) -> Selection:
    """One selection of the index [k] and weights [k, n] of every span; shorter ones are filled up, not valid."""
    counts = [len(index) for index, _ in spans]
    longest = max(counts)
    index = torch.stack([torch.nn.functional.pad(i, (0, longest - len(i))) for i, _ in spans])
    weights = torch.stack([torch.nn.functional.pad(w, (0, 0, 0, longest - len(w))) for _, w in spans])
    if min(counts) == longest:
        return Selection(index, weights)
    there = torch.arange(longest, device=index.device) < to_device(counts, index.device)[:, None]
    return Selection(index, weights, there)


def mean_weights(index: Tensor, group: Tensor, weight: Tensor | None = None) -> Tensor:
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
    distance = distances(x)
    centres = order_of(peak_scores(distance, neighbours))[:, :clusters]
    to_centres = distance.gather(2, centres[:, None].expand(-1, n, -1))
    group = to_centres.argmin(-1)
    own = torch.arange(clusters, device=x.device).expand(len(x), -1)
    return centres, group.scatter(1, centres, own)


def distances(x: Tensor) -> Tensor:
    """Euclidean distances over sqrt(d) between the rows of x [S, n, d]; float64 [S, n, n], exactly symmetric."""
    distance = torch.cdist(x.double(), x.double()) / x.shape[-1] ** 0.5
    return torch.maximum(distance, distance.mT)


def bipartite(metric: Tensor, merged: int, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """One round of bipartite soft matching (ToMe, Bolya et al., ICLR 2023).

    metric: [S, n, e]; sizes: [S, n], tokens that each one stands for. Even tokens look for their most similar odd one;
    the `merged` (at most ceil(n / 2)) most similar pairs become their size-weighted mean. Returns the places that stay,
    int64 [S, n - merged], and weights [S, n - merged, n].
    """
    n = metric.shape[1]
    even, odd = metric[:, ::2], metric[:, 1::2]
    similarity, partner = (even @ odd.mT).max(-1)
    order = order_of(similarity)
    gone, target = order[:, :merged], partner.gather(1, order[:, :merged])
    belongs = torch.arange(n, device=metric.device).repeat(len(metric), 1)
    belongs = belongs.scatter(1, 2 * gone, 2 * target + 1)
    stays = torch.ones(len(metric), n, dtype=torch.long, device=metric.device).scatter(1, 2 * gone, 0)
    index = order_of(stays)[:, : n - merged].sort(dim=-1).values
    rank = stays.cumsum(1) - 1
    return index, mean_weights(index, rank.gather(1, belongs), sizes)


def assign(x: Tensor, targets: Tensor) -> Tensor:
    """int64 [S, m]: for every row of x [S, m, d] the row of `targets` [S, c, d] with the largest product; the first of
    equals."""
    return (x @ targets.mT).argmax(-1)


def weighted_sums(weights: Tensor, x: Tensor) -> Tensor:
    """Mixtures weights @ x of rows, float32 [k, d]. weights: float32 [k, n], mostly zeros, which cost nothing on a CPU
    (on a GPU looking for them would make the host wait); x: [n, d] of any float type."""
    if x.is_cuda:
        return weights @ x.float()
    rows, sources = weights.nonzero(as_tuple=True)
    if len(rows) > weights.numel() / DENSE:
        return weights @ x.float()
    counts = torch.bincount(rows, minlength=len(weights))
    offsets, own = counts.cumsum(0) - counts, weights[rows, sources]
    return functional.embedding_bag(sources, x.float(), offsets=offsets, mode="sum", per_sample_weights=own)
