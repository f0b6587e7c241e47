"""Sequences of one encoder call, attended to at once instead of one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.core.selection import to_device

# One padded call beats many small ones up to so many times the products that there need be, and always where sequences
# are of so few rows: a call costs more than they do.
WASTE, FEW = 4, 512


class Segments:
    """How the rows of a call are cut into sequences that attend to themselves alone: frames, pictures, windows.

    Kernels that know no boundaries are called by the host library for one sequence after the other, hundreds of times a
    block where they are windows. Here all of them are one batch, the shorter ones padded.
    """

    def __init__(self, lengths: Sequence[int], like: Tensor) -> None:
        """lengths: rows of each sequence, none of them 0; like: boundaries of the same, for device and dtype."""
        self.lengths = list(lengths)
        longest, count = max(lengths), len(lengths)
        self.rows = sum(lengths)
        self.whole = to_device([0, self.rows], like.device).to(like.dtype)  # boundaries of one sequence
        self.even = min(lengths) == longest
        if not self.even:
            sizes = torch.tensor(self.lengths)
            real = torch.arange(longest) < sizes[:, None]
            rows = torch.zeros(count, longest, dtype=torch.long)
            rows[real] = torch.arange(self.rows)
            self._rows = rows.to(like.device, non_blocking=True)
            self._back = real.flatten().nonzero().flatten().to(like.device, non_blocking=True)
            self._padding = (~real)[:, None, None].to(like.device, non_blocking=True)

    @classmethod
    def of(cls, lengths: Sequence[int], like: Tensor) -> Segments | None:
        """Where one call is worth it; None where there is one sequence, or padding would be most of the work."""
        if len(lengths) < 2:
            return None
        longest, needed = max(lengths), sum(n * n for n in lengths)
        pays = longest <= FEW or len(lengths) * longest**2 <= WASTE * needed
        return cls(lengths, like) if pays else None

    def split(self, *parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Sequence by sequence, of [1, H, rows, e] each."""
        yield from zip(*(x.split(self.lengths, 2) for x in parts), strict=True)

    def attend(
        self,
        original: Callable[..., tuple[Tensor, Tensor | None]],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """What the kernel `original` makes of all sequences, [1, rows, H, e], from [1, H, rows, e] each."""
        count = len(self.lengths)
        if self.even:
            batch = (x[0].unflatten(1, (count, -1)).transpose(0, 1) for x in (query, key, value))
            output = original(module, *batch, None, **options)[0]
            return output.flatten(0, 1)[None], None
        batch = (x[0][:, self._rows].transpose(0, 1) for x in (query, key, value))
        hide = query.new_zeros(1).expand(self._padding.shape).masked_fill(self._padding, torch.finfo(query.dtype).min)
        output = original(module, *batch, hide, **options)[0]
        return output.flatten(0, 1)[self._back][None], None
