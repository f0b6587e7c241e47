"""FEATHER: attention without rotation, and an even grid beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection, ranks, top_k
from tokenprune.methods.base import Method, Schedule, View, keep_option, option, rounding_option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class FEATHER(Method):
    """FEATHER the Throttle (Endo et al., ICCV 2025, arXiv 2412.13180).

    Score before layer k: products of the last prompt token's query and the visual keys of layer k-1 without rotary
    positions, softmax over the visual keys alone, mean over heads. The first stage keeps the best int(n * keep) and
    every `stride`-th token of every `stride`-th row; the second keeps the best int(n * keep**2) of what is left,
    without a grid (`stride=0`). By name they stand before a quarter and half of the layers (8, 16 of 32).

    With `budget_of="published"` the grid comes on top of `keep`; with `budget_of="total"` it counts in it, and the best
    scored tokens fill up. The published code needs one square image without padding; here every grid will do.
    """

    name: ClassVar[str] = "feather"
    paper: ClassVar[str] = "arXiv 2412.13180"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "attention, staged"
    origin: ClassVar[Origin] = Origin("code", "markendo/FEATHER", "c2a09b27")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("the grid counts in the budget", "so that keep is what survives", {"budget_of": "published"}),
        Difference("every grid, and padding", "the code needs one square picture without padding"),
    )
    default_at: ClassVar[int] = 8

    keep: Keep = keep_option(0.3, "what survives by score: a fraction of the tokens, or a number")
    rounding: str = rounding_option("down")
    stride: int = option(3, "distance of the even grid's rows and columns; 0: no grid", low=0)
    budget_of: str = option(
        "total", "whether the grid counts in keep (total) or not (published)", ("total", "published")
    )

    def __post_init__(self) -> None:
        if self.stride is None:
            object.__setattr__(self, "stride", 0)
        super().__post_init__()

    @property
    def reads_grid(self) -> bool:
        return self.stride > 0

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("attention_row", "content"),)

    def schedule(self, layers: int) -> Schedule:
        first = max(1, layers // 4)
        if isinstance(self.keep, int):
            return [(first, self)]
        return [(first, self), (max(2, layers // 2), replace(self, keep=self.keep**2, stride=0))]

    def select(self, view: View) -> Selection:
        rank, k = ranks(view.mean_over_heads("attention_row")), self.budget(view)
        if not self.stride:
            return Selection(top_k(-rank, k))
        _, _, row, column = view.cells("feather with a stride")
        grid = (row % self.stride == 0) & (column % self.stride == 0)
        if self.budget_of == "total":
            return Selection(top_k(grid * view.count - rank, k))
        return Selection.of(grid | (rank < k))
