"""Which part of a forward is the prompt, and which of its tokens something is read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.errors import BadInput
from tokenprune.families.base import Span

IGNORED = -100  # labels that do not count, by convention of the host library


@dataclass
class Call:
    """What the caller of the model said of one forward.

    logits_to_keep: the last so many logits, 0 for all, or int64 columns.
    labels: int64 [B, L], or None.
    prompt_length: tokens of each row that are the prompt, padding not counted, or None.
    width: columns that `generate` was given, where it is what calls; they are the prompt.
    router_logits: whether the logits of a mixture's routers are asked for.
    """

    logits_to_keep: int | Tensor = 0
    labels: Tensor | None = None
    prompt_length: Any = None
    width: int | None = None
    router_logits: bool = False

    @property
    def reads_end(self) -> bool:
        """Whether the last columns are read, as `generate` reads them."""
        return self.labels is None and isinstance(self.logits_to_keep, int) and self.logits_to_keep > 0

    def question(self, length: int, past: int) -> int:
        """How many of the columns of a pass of `length` after `past` are a prompt: drafts and answers are not."""
        return length if self.width is None else max(0, min(length, self.width - past))

    def ends(self, valid: Tensor, past: int) -> Tensor | None:
        """int64 [B]: the first column after the prompt in each row; None where all of this pass is prompt.

        valid: bool [B, L], False for padding.
        """
        batch, length = valid.shape
        if self.prompt_length is not None:
            return self._told(valid)
        if self.labels is not None:
            counted = (self.labels != IGNORED).to(valid.device)
            return torch.where(counted.any(1), counted.long().argmax(1), length)
        if self.question(length, past) < length:
            return torch.full((batch,), self.question(length, past), device=valid.device)
        return None

    def _told(self, valid: Tensor) -> Tensor:
        told = torch.as_tensor(self.prompt_length, device=valid.device).reshape(-1)
        if told.is_floating_point() or len(told) not in (1, len(valid)):
            raise BadInput(
                f"prompt_length={self.prompt_length!r} does not fit: give one whole number for each of the "
                f"{len(valid)} rows of the batch, the tokens of its prompt without padding."
            )
        told = told.expand(len(valid))
        tokens = valid.sum(1)
        if bool(((told < 1) | (told > tokens)).any()):
            raise BadInput(
                f"prompt_length={told.tolist()} is out of range: the rows have {tokens.tolist()} tokens, padding not "
                "counted, and a prompt has one at least."
            )
        return (valid.long().cumsum(1) < told[:, None]).sum(1) + 1

    def read(self, spans: list[Span], length: int, last: list[int]) -> list[tuple[int, int]]:
        """(row, column) of the visual tokens and separators that a next token, a label or a logit is read from.

        last: the last column of each row that is not padding.
        """
        media: list[set[int]] = [set() for _ in last]
        for span in spans:
            media[span.row] |= {*span.columns, *(s.column for s in span.separators)}
        return [
            (row, c) for row, columns in enumerate(self._columns(length, last)) for c in sorted(columns & media[row])
        ]

    def _columns(self, length: int, last: list[int]) -> Sequence[set[int]]:
        if self.labels is not None:
            counted = (self.labels != IGNORED).cpu().numpy()
            return [{int(c) - 1 for c in row.nonzero()[0] if c > 0} for row in counted]
        if isinstance(self.logits_to_keep, Tensor):
            return [set(self.logits_to_keep.flatten().tolist())] * len(last)
        tail = set(range(length - self.logits_to_keep, length)) if self.logits_to_keep else set()
        return [tail | {column} for column in last]
