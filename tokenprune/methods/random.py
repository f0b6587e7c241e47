"""Baseline: a random subset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.methods.base import ScoreMethod, View, option
from tokenprune.methods.origin import Origin


@dataclass(frozen=True)
class Random(ScoreMethod):
    """Keeps a random subset, the same for every span of the same length.

    The subset depends on `seed` and the span's length alone: the global random state is neither read nor moved, and a
    row of a batch keeps what it would keep alone. Average over seeds to judge it.
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "baseline"
    year: ClassVar[int] = 0
    kind: ClassVar[str] = "baseline"
    origin: ClassVar[Origin] = Origin("ours")

    seed: int = option(0, "seed of the method's own generator")

    def score(self, view: View) -> Tensor:
        return torch.rand(view.count, generator=torch.Generator().manual_seed(self.seed)).expand(view.spans, -1)
