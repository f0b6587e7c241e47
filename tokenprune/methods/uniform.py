"""Baseline: evenly spaced tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenprune.core.selection import Selection
from tokenprune.methods.base import Method, View
from tokenprune.methods.origin import Origin


@dataclass(frozen=True)
class Uniform(Method):
    """Keeps the middle token of each of k equal stretches of the span in raster order."""

    name: ClassVar[str] = "uniform"
    paper: ClassVar[str] = "baseline"
    year: ClassVar[int] = 0
    kind: ClassVar[str] = "baseline"
    origin: ClassVar[Origin] = Origin("ours")

    def select(self, view: View) -> Selection:
        k = self.budget(view)
        index = (2 * torch.arange(k) + 1) * view.count // max(2 * k, 1)
        return Selection(index.expand(view.spans, -1))
