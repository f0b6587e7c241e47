"""LLaVA-Scissor: connected components of alike tokens, in every frame and then across frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import unit_rows
from tokenprune.core.merging import Survivors, stack_spans
from tokenprune.core.selection import Selection
from tokenprune.methods.base import BudgetMethod, View, keep_option, option
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need

ROUNDS = 14  # halvings of the threshold's interval, which is [-1, 1]


@dataclass(frozen=True)
class LlavaScissor(BudgetMethod):
    """LLaVA-Scissor (Sun et al., 2025, arXiv 2506.21862).

    In every frame, tokens with a cosine above `threshold` are connected; each connected component becomes its mean,
    at the place of its best connected token. The means of all frames are connected and merged in the same way. In the
    end every token joins the most similar one of those: (mean + sum of the tokens) / (their number + 1).

    The published code has no budget; with `keep` the threshold is found by halving, and the tokens least like their
    own mean fill up to k. It samples nodes where a frame has more than about 400 ln n, and loses members of a
    component that its union-find holds more than one link from the root; here components are exact. They are found on
    the host.
    """

    name: ClassVar[str] = "llava_scissor"
    paper: ClassVar[str] = "arXiv 2506.21862"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "video, merging"
    reads_grid: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "HumanMLLM/LLaVA-Scissor", "b63354c8")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("components are exact", "the code samples nodes where a frame has very many tokens"),
        Difference(
            "with keep the threshold is found by halving",
            "the code has no budget; keep=none leaves it so, which is the default",
        ),
        RENUMBERED,
    )
    adaptive: ClassVar[bool] = True
    waits: ClassVar[str] = "how many components there are follows from the features"

    keep: Keep | None = keep_option(None, "what survives; none: as many as `threshold` leaves")
    threshold: float = option(0.9, "cosine above which tokens are connected, where keep does not say")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("features"),)

    def choose(self, view: View) -> Selection:
        k = None if self.keep is None else self.budget(view)
        frame = view.frames(self.name).frame
        return stack_spans([self._span(x, frame[i], k) for i, x in enumerate(view["features"].double())])

    def _span(self, x: Tensor, frame: Tensor, k: int | None) -> tuple[Tensor, Tensor]:
        threshold = self.threshold if k is None else self._threshold(x, frame, k)
        index, group, share = _representatives(x, frame, threshold)
        token = torch.arange(len(x), device=x.device)
        rows = torch.zeros(len(index), len(x), dtype=x.dtype, device=x.device)
        rows[group, token] = share
        likeness, nearest = (unit_rows(x) @ unit_rows(rows @ x).mT).max(-1)
        members = torch.zeros_like(rows)
        members[nearest, token] = 1
        stays = Survivors(len(x), x.device)
        stays.mix(index, (rows + members) / (members.sum(-1, keepdim=True) + 1))
        return stays.all() if k is None else stays.exactly(k, -likeness)

    def _threshold(self, x: Tensor, frame: Tensor, k: int) -> float:
        """The highest threshold found that leaves no more than k."""
        low, high = -1.001, 1.0
        for _ in range(ROUNDS):
            middle = (low + high) / 2
            if len(_representatives(x, frame, middle)[0]) <= k:
                low = middle
            else:
                high = middle
        return low


def _representatives(x: Tensor, frame: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [m] that stand for a component; for every token its component [n] and its weight in the mean [n]."""
    index = []
    group, share = torch.zeros_like(frame), torch.zeros(len(x), dtype=x.dtype, device=x.device)
    found = 0
    for number in frame.unique():
        own = (frame == number).nonzero().flatten()
        firsts, label = _components(x[own], threshold)
        index.append(own[firsts])
        group[own], share[own] = found + label, 1 / label.bincount()[label].to(x.dtype)
        found += len(firsts)
    chosen = torch.cat(index)
    means = torch.zeros(found, x.shape[1], dtype=x.dtype, device=x.device).index_add(0, group, x * share[:, None])
    firsts, label = _components(means, threshold)
    return chosen[firsts], label[group], share / label.bincount()[label][group]


def _components(x: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Best connected members [m] of the components of x [n, d], ascending, and the component of every token [n]."""
    from scipy.sparse.csgraph import connected_components

    unit = unit_rows(x)
    near = unit @ unit.mT > threshold
    count, label = connected_components(near.cpu().numpy(), directed=False)
    label = torch.as_tensor(label, dtype=torch.long, device=x.device)
    degree = near.sum(-1)
    most = degree.new_full((count,), -1).scatter_reduce(0, label, degree, "amax")
    n = len(x)
    token = torch.arange(n, device=x.device)
    first_of = torch.full((count,), n, device=x.device)
    first_of = first_of.scatter_reduce(0, label, torch.where(degree == most[label], token, n), "amin")
    first_of, order = first_of.sort()
    return first_of, order.argsort()[label]
