"""What is padding in a prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.families.base import Span


@dataclass(frozen=True)
class Padding:
    """Padding of a batch, and what the host knows of it.

    valid: bool [B, L], False for padding. counts: tokens of each row of the batch. last: the last column of each row
    that is not padding. on_the_right: whether any row is padded there. hides_media: whether visual tokens or
    separators are hidden.
    """

    valid: Tensor
    counts: list[int]
    last: list[int]
    on_the_right: bool = False
    hides_media: bool = False

    @classmethod
    def of(cls, given: Tensor | None, hidden: Tensor, spans: list[Span]) -> Padding:
        """Of a mask bool [B, P + L], or None, over the rows `hidden` [B, L, d]. Waits for the device once, or twice
        where a row is padded on the right."""
        batch, length, _ = hidden.shape
        last = [length - 1] * batch
        if given is None:
            return cls(hidden.new_ones(batch, length, dtype=torch.bool), [length] * batch, last)
        valid = given[:, -length:]
        media = torch.zeros(batch, length, dtype=torch.bool)
        for span in spans:
            media[span.row, [*span.columns, *(s.column for s in span.separators)]] = True
        media = media.to(hidden.device, non_blocking=True)
        known = [valid.sum(1), (~valid[:, -1:]).sum()[None], (media & ~valid).sum()[None]]
        *counts, right, hides = torch.cat(known).tolist()
        if right:
            last = (length - 1 - valid.flip(1).long().argmax(1)).tolist()
        return cls(valid, counts, last, bool(right), bool(hides))
