"""Rows that a stage inside the vision encoder left out, and that come back behind it (IPCV's reconstruction)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from tokenprune.core.selection import indices_of
from tokenprune.engine.encoder_rows import EncoderRows


@dataclass(frozen=True, eq=False)
class Returning:
    """How they come back: as they were at the stage, moved like their neighbours that stayed.

    before: the rows that the stage was given. states: [B, W, d], all rows there. neighbours: int64 [G, m], for each
    group those that stay and whose mean change it gets, -1 for fewer. until: the first block whose attention no longer
    sees all rows of `before`.
    """

    before: EncoderRows
    states: Tensor
    neighbours: Tensor
    until: int

    def rebuild(self, rows: EncoderRows, x: Tensor) -> Tensor:
        """All rows [B, W, d] from those that are left [B, K, d]."""
        if not rows.shortened:
            return x
        before, members = self.before, rows.members
        whole = rows.restore(x)
        change = (whole - self.states).flatten(0, 1)[members].flatten(1).float()  # [G, u * d]
        gone = indices_of(before.alive & ~rows.alive, sum(before.counts) - sum(rows.counts))
        near = self.neighbours[gone]
        there = (near >= 0).float()
        share = there / there.sum(1, keepdim=True)
        moved = functional.embedding_bag(near.clamp(min=0), change, mode="sum", per_sample_weights=share)
        flat, own = whole.flatten(0, 1), members[gone]
        back = self.states.flatten(0, 1)[own] + moved.view(*own.shape, -1).to(x.dtype)
        flat = flat.index_put((own,), back)
        if before.shortened:  # what went before this stage stays what stands for it
            flat = flat.index_put((members,), flat[members[before.stands]])
        return flat.view_as(whole)
