"""Methods that choose, at every decoding step, which visual tokens the step looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.selection import Selection, top_k
from tokenprune.methods.base import Method, View, option, within
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class DecodingMethod(Method):
    """Base of the methods of decoding steps. The whole cache stays; a step looks at a part of it.

    The signal is `attention_row` [1, n] of the token that is being decoded, mean over the heads, in the layer before
    `start`.
    """

    decodes: ClassVar[bool] = True
    default_start: ClassVar[int] = 3
    reuses: ClassVar[bool] = False  # whether layers before the choosing one look at what the step before chose

    alike: float = option(0.9, "cosine with the step before from which on a step does not choose anew")
    otherwise: str = option("previous", "what such a step looks at: previous choice or full", ("previous", "full"))

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self.name, "alike", self.alike, -1.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("attention_row"),)

    def schedule(self, layers: int) -> list[tuple[tuple[str, int], Method]]:
        return [(("decode", min(self.default_start, layers - 1)), self)]

    def budget(self, view: View) -> int:
        """Tokens that a step looks at: at most all, since rows of a batch have different numbers of them."""
        return min(self.keep, view.count) if isinstance(self.keep, int) else super().budget(view)

    def moves(self, row: Tensor, last: Tensor | None) -> Tensor:
        """bool [S]: which rows choose anew, from the attention [S, n] of this step and the one before (None: first)."""
        if last is None:
            return torch.ones(len(row), dtype=torch.bool, device=row.device)
        return torch.cosine_similarity(row, last, dim=-1) < self.alike

    def select(self, view: View) -> Selection:
        return Selection(top_k(view["attention_row"].float().mean(1), self.budget(view)))
