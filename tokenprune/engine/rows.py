"""Which prompt token each row of the sequence stands for, between two stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(repr=False)
class Rows:
    """What the rows of the sequence are between two stages.

    index: int64 [B, K], the prompt column of each row of this forward; None while nothing has been removed.
    valid: bool [B, K], False for padding. positions: int64 [axes, B, K]. counts: valid rows of each batch row.
    columns: for each span the int64 rows it still occupies, ascending; tokens: which tokens of the span they are.
    ends, end_ids: the same for its separators. native: the rows of the text model's own cos and sin (None: all in
    order). renumbered: the positions are not those that the text model computed cos and sin for.
    ropes, masks, keys: what layers of one kind share, once made. text: what `signals.text_rows` found.
    """

    index: Tensor | None
    valid: Tensor
    positions: Tensor
    counts: list[int]
    columns: list[Tensor]
    tokens: list[Tensor]
    ends: list[Tensor]
    end_ids: list[Tensor]
    native: Tensor | None = None
    renumbered: bool = False
    ropes: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)
    masks: dict[Any, Any] = field(default_factory=dict)
    keys: dict[Any, tuple[Tensor, Tensor, int]] = field(default_factory=dict)
    text: list[Tensor] | None = None

    def __repr__(self) -> str:
        visual = [len(columns) for columns in self.columns]
        renumbered = ", renumbered" if self.renumbered else ""
        return f"Rows({self.length} wide, {self.counts} of them tokens, spans hold {visual}{renumbered})"

    @property
    def length(self) -> int:
        """K."""
        return self.valid.shape[1]

    def prompt_columns(self) -> Tensor:
        """int64 [B, K]: the prompt column of each row."""
        if self.index is not None:
            return self.index
        return torch.arange(self.length, device=self.valid.device).expand(len(self.valid), -1)
