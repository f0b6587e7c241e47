"""Light-ColPali: the patch embeddings of an indexed page, merged by hierarchical clustering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import unit_rows
from tokenprune.core.merging import mean_weights
from tokenprune.core.selection import Selection
from tokenprune.methods.base import BudgetMethod, View, keep_option, rounding_option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class LightColPali(BudgetMethod):
    """Our reading of Light-ColPali's training-free part (Ma et al., ACL Findings 2025, arXiv 2506.04997).

    The question is unknown when a page is indexed, so nothing is scored: L2-normalised embeddings are clustered
    agglomeratively (Ward) into ceil(n * keep) groups, and each becomes its mean, at the place of its first member. For
    ColPali and ColQwen2 see `tokenprune.retrieval`; the paper's factors 4, 9, 25, 49 are keep = 1 / factor.

    Clustering runs on the host, page by page: indexing is done once. The paper merges after the projector and
    fine-tunes afterwards, which this does not.
    """

    name: ClassVar[str] = "light_colpali"
    paper: ClassVar[str] = "arXiv 2506.04997"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "merging, retrieval"
    origin: ClassVar[Origin] = Origin("abstract", note="its training-free part")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("nothing is fine-tuned after merging", "this library trains nothing"),
    )
    waits: ClassVar[str] = "clustering runs on the host, page by page"

    keep: Keep = keep_option(1 / 9)
    rounding: str = rounding_option("up")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("features"),)

    def choose(self, view: View) -> Selection:
        unit, k = unit_rows(view["features"]), self.budget(view)
        groups = [_clusters(page, k) for page in unit.double().cpu().numpy()]
        group = torch.from_numpy(np.stack(groups)).to(unit.device)
        number = torch.arange(view.count, device=unit.device).expand_as(group)
        first = torch.full((view.spans, k), view.count, device=unit.device)
        first = first.scatter_reduce(1, group, number, "amin")
        return Selection(first, mean_weights(first, group))


def _clusters(page: np.ndarray, k: int) -> np.ndarray:
    """int64 [n]: the group of each row, numbered by first appearance."""
    from scipy.cluster.hierarchy import cut_tree, linkage  # slow to import, and needed for pages alone

    labels = cut_tree(linkage(page, method="ward"), n_clusters=k)[:, 0]
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)
