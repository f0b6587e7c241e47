"""Methods that choose, at every decoding step, which visual tokens the step looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.methods.base import Schedule, ScoreMethod, View, option
from tokenprune.methods.place import Decode
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class DecodingMethod(ScoreMethod):
    """Base of the methods of decoding steps. The whole cache stays; a step looks at a part of it.

    The signal is `attention_row` [1, n] of the token that is being decoded, mean over the heads, in the layer before
    `start`.
    """

    decodes: ClassVar[bool] = True
    reuses: ClassVar[bool] = False  # whether layers before the choosing one look at what the step before chose

    alike: float = option(0.9, "cosine with the step before from which on a step does not choose anew", low=-1.0)
    otherwise: str = option("previous", "what such a step looks at: previous choice or full", ("previous", "full"))

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("attention_row"),)

    def schedule(self, layers: int) -> Schedule:
        return [(Decode(min(self.default_start, layers - 1)), self)]

    def budget(self, view: View) -> int:
        """Tokens that a step looks at: at most all, since rows of a batch have different numbers of them."""
        return min(self.keep, view.count) if isinstance(self.keep, int) else super().budget(view)

    def moves(self, row: Tensor, last: Tensor | None) -> Tensor:
        """bool [S]: which rows choose anew, from the attention [S, n] of this step and the one before (None: first)."""
        if last is None:
            return torch.ones(len(row), dtype=torch.bool, device=row.device)
        return torch.cosine_similarity(row, last, dim=-1) < self.alike

    def score(self, view: View) -> Tensor:
        return view.mean_over_heads("attention_row")
