"""One call of a vision encoder while it runs: what is left of its rows, and what its stages and blocks did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.engine.encoder_choice import Choice
from tokenprune.engine.encoder_rows import EncoderRows
from tokenprune.engine.stopwatch import Stopwatch
from tokenprune.families.base import Encoded, EncoderBlocks


@dataclass
class EncoderRecord:
    """What a stage did in one call: groups of each segment before and after, bool [G] what is left, and its time."""

    before: list[int]
    after: list[int]
    alive: Tensor
    watch: Stopwatch


@dataclass(frozen=True)
class BlockWork:
    """What a block of the encoder was given: the lengths of its sequences, unpruned and as they were.

    dense, own: int64 boundaries where one sequence is cut into several, else (sequences, rows of each).
    """

    block: nn.Module
    dense: Tensor | tuple[int, int]
    own: Tensor | tuple[int, int]

    @staticmethod
    def lengths(given: Tensor | tuple[int, int]) -> list[int]:
        """Lengths of the sequences (which waits for the device)."""
        return given.diff().tolist() if isinstance(given, Tensor) else [given[1]] * given[0]


@dataclass
class EncoderWork:
    """What one call of an encoder did: its stages, its blocks, and the time of all of it."""

    watch: Stopwatch
    stages: list[EncoderRecord] = field(default_factory=list)
    blocks: list[BlockWork] = field(default_factory=list)


@dataclass
class EncoderCall:
    """One call of a feature getter, while its encoder runs.

    laid: what is left of its rows; None until it is known how they lie. followed: arguments of blocks that were
    shortened, by identity of the whole ones. history: what each stage left. ahead: the choice of the next stage, where
    it was made before there was anything to mix.
    """

    encoded: Encoded
    blocks: EncoderBlocks
    work: EncoderWork
    laid: EncoderRows | None = None
    followed: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    history: list[EncoderRows] = field(default_factory=list)
    ahead: tuple[Choice, Stopwatch] | None = None

    @property
    def rows(self) -> EncoderRows:
        """What is left of its rows, once it is known how they lie."""
        assert self.laid is not None, "the encoder has not come to its first block"
        return self.laid

    @property
    def shortened(self) -> bool:
        """Whether a group has gone."""
        return self.laid is not None and self.laid.shortened

    def follow(self, value: Any) -> Any:
        """An argument of a block, for the rows that are left."""
        if isinstance(value, tuple):
            return tuple(self.follow(one) for one in value)
        if not isinstance(value, Tensor):
            return value
        known = self.followed.get(id(value))
        if known is None or known[0] is not value:
            known = self.followed[id(value)] = value, follow(self.rows, value)
        return known[1]

    def restore(self, heard: list[Tensor]) -> list[Tensor]:
        """What was heard of the rows of a block, [N, rows, ...] by each call of its attention, for all rows."""
        if not heard or not self.history:
            return heard
        sequences, width = self.history[0].shape
        x = torch.cat([one.flatten(0, 1) for one in heard])
        rows = len(x) // sequences
        if rows == width:
            return heard
        state = next(one for one in self.history if one.index.shape[1] == rows)
        return [state.restore(x.unflatten(0, (sequences, rows)))]


def follow(rows: EncoderRows, value: Tensor) -> Tensor:
    """An argument of a block (cos and sin, boundaries of sequences, a mask) for the rows that are left; what does not
    go by rows stays."""
    sequences, width = rows.shape
    if value.ndim == 1 and not value.is_floating_point() and sequences == 1 and len(value) != width:
        before = torch.nn.functional.pad(rows.left[0].long().cumsum(0), (1, 0))
        own = before[value.long()].to(value.dtype)
        # No sequence may be empty. Frames are known not to be; about windows the host has to look.
        return own if all(rows.counts) and len(value) == len(rows.counts) + 1 else own.unique_consecutive()
    if value.ndim == 4 and value.shape[-1] == value.shape[-2] == width:
        index = rows.index[:, None]
        columns = value.gather(-1, index[..., None, :].expand(*value.shape[:-1], -1))
        return columns.gather(-2, index[..., None].expand(*columns.shape[:-2], -1, columns.shape[-1]))
    if value.ndim >= 2 and value.shape[0] == width and sequences == 1:
        return value[rows.index[0]]
    if value.ndim >= 2 and value.shape[1] == width:
        return rows.shorten(value.expand(sequences, *value.shape[1:]) if len(value) == 1 else value)
    return value
