"""One call of a vision encoder while it runs: what is left of its rows, and what its stages and blocks did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.engine.encoder_choice import Choice
from tokenprune.engine.encoder_rows import EncoderRows, gather_each
from tokenprune.engine.returning import Returning
from tokenprune.engine.stopwatch import Stopwatch
from tokenprune.families.base import Encoded
from tokenprune.signals import taps
from tokenprune.signals.need import Need


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

    dense, own: int64 boundaries where one sequence is cut into several, else (sequences, rows of each). mlp_rows: how
    many of the rows its MLP worked on, where attention saw more; None: all.
    """

    block: nn.Module
    dense: Tensor | tuple[int, int]
    own: Tensor | tuple[int, int]
    mlp_rows: int | None = None

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

    flash: whether its attention kernel takes boundaries itself. laid: what is left of its rows; None until it is known
    how they lie. history: what each stage left. ahead: the choice of the next stage, where it was made before there was
    anything to mix. returning: how what a stage left out comes back. attending: the rows that attention sees in the
    block that runs; None: those that are left. noted: what the stage behind a block reads of it, of all rows
    [B, W, ...], by name. heard: what its attention paid, by need. touched: attention modules that weigh means, or
    attend to several sequences at once.
    """

    encoded: Encoded
    work: EncoderWork
    flash: bool = False
    laid: EncoderRows | None = None
    history: list[EncoderRows] = field(default_factory=list)
    ahead: tuple[Choice, Stopwatch] | None = None
    returning: Returning | None = None
    attending: EncoderRows | None = None
    noted: dict[str, Tensor] = field(default_factory=dict)
    heard: dict[Need, list[Tensor]] = field(default_factory=dict)
    touched: list[nn.Module] = field(default_factory=list)
    _heard_before: list[tuple[nn.Module, taps.Listener | None]] = field(default_factory=list)

    @property
    def rows(self) -> EncoderRows:
        """What is left of its rows, once it is known how they lie."""
        assert self.laid is not None, "the encoder has not come to its first block"
        return self.laid

    @property
    def shortened(self) -> bool:
        """Whether a group has gone."""
        return self.laid is not None and self.laid.shortened

    @property
    def seen(self) -> EncoderRows:
        """The rows that attention in the block that runs works on."""
        return self.rows if self.attending is None else self.attending

    def hear(self, attention: nn.Module, listener: taps.Listener) -> None:
        """Listen to an attention module beside whoever does."""
        before = taps.listeners().get(attention)

        def both(query: Tensor, key: Tensor, scaling: float, mask: Any, softcap: float) -> None:
            listener(query, key, scaling, mask, softcap)
            if before is not None:
                before(query, key, scaling, mask, softcap)

        self._heard_before.append((attention, before))
        taps.listeners()[attention] = both

    def end(self) -> None:
        """Take off what attention modules of this call got."""
        for attention, before in self._heard_before:
            if before is None:
                taps.listeners().pop(attention, None)
            else:
                taps.listeners()[attention] = before
        for attention in self.touched:
            taps.adjusters().pop(attention, None)
            taps.batches().pop(attention, None)

    def only_left(self, x: Tensor) -> Tensor:
        """Of the output of a block [B, K, d] the rows that are left: attention may have seen those that come back."""
        if self.returning is None or x.shape[1] == self.rows.index.shape[1]:
            return x
        return gather_each(x, self.rows.index_in(self.returning.before))

    def bring_back(self, x: Tensor) -> Tensor:
        """All rows [B, W, d] from those that are left [B, K, d]."""
        return self.rows.restore(x) if self.returning is None else self.returning.rebuild(self.rows, x)

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
