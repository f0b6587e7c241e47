"""Tensors that follow the rows of a sequence, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune_kernels.selection import close_rows


@dataclass(frozen=True, eq=False)
class Rows:
    """What is known of each row of a sequence; never changed in place.

    by_name: tensors [B, K, ...], each on a device of its own where a model is spread over several.
    """

    by_name: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.by_name[name]

    def replace(self, **tensors: Tensor) -> Rows:
        """The same with other tensors under these names."""
        return Rows({**self.by_name, **tensors})

    def append(self, **tensors: Tensor) -> Rows:
        """More rows behind these: [B, K', ...] under every name."""
        return Rows({name: torch.cat([x, tensors[name]], dim=1) for name, x in self.by_name.items()})

    def take(
        self, keep: Tensor, width: int, carried: Mapping[str, Tensor] | None = None
    ) -> tuple[Rows, dict[str, Tensor]]:
        """The rows that stay, and what is carried along closed up likewise.

        keep: bool [B, K]. Survivors go to the right in their order; `width` is what the longest row of the batch has
        of them, and a shorter one gets rows that went on the left. carried: further tensors [B, K, ...].
        """
        carried = carried or {}
        names, whole = [*self.by_name, *carried], [*self.by_name.values(), *carried.values()]
        closed: dict[str, Tensor] = {}
        for device in dict.fromkeys(x.device for x in whole):
            mine = [i for i, x in enumerate(whole) if x.device == device]
            _, *taken = close_rows(keep.to(device), width, [whole[i] for i in mine])
            closed |= {names[i]: x for i, x in zip(mine, taken, strict=True)}
        return Rows({name: closed[name] for name in self.by_name}), {name: closed[name] for name in carried}
