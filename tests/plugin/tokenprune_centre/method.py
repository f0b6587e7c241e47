"""Centre: the tokens nearest to the middle of the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.core.selection import Selection, top_k
from tokenprune.methods.base import Method, View, option


@dataclass(frozen=True)
class Centre(Method):
    """Keeps the tokens nearest to the middle of the span; distances in rows and in columns, the latter times `wide`."""

    name: ClassVar[str] = "centre"
    paper: ClassVar[str] = "example"
    year: ClassVar[int] = 2026
    kind: ClassVar[str] = "baseline"

    wide: float = option(1.0, "how much a column counts beside a row")

    def select(self, view: View) -> Selection:
        """The nearest tokens, of equal ones the first."""
        _, _, row, column = (x.float() for x in view.cells(self.name))
        middle = [(x.amin(-1, keepdim=True) + x.amax(-1, keepdim=True)) / 2 for x in (row, column)]
        far = (row - middle[0]).square() + (self.wide * (column - middle[1])).square()
        return Selection(top_k(-far, self.budget(view)))
