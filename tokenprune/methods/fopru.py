"""FoPru: tokens that the vision encoder itself attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenprune.core.budget import Keep, n_keep
from tokenprune.core.selection import Selection, top_k
from tokenprune.errors import BadInput
from tokenprune.methods.base import Method, Need, View, option


@dataclass(frozen=True)
class FoPru(Method):
    """FoPru (Jiang et al., arXiv 2411.14164): focal pruning before the LLM, survivors in raster order.

    Significance of a token: the attention it receives in the penultimate layer of the vision encoder, mean over heads
    and queries (`source="received"`), or the CLS token's attention to it (`source="cls"`). `strategy="rank"` keeps the
    k most significant tokens. `strategy="row"` ranks the rows of the grid by their mean and keeps whole rows; where k
    is not a multiple of the row length, the next row gives its most significant tokens, so that exactly k stay.

    No code was published; the formula of the significance and the fill-up of the row strategy are our reading.
    """

    name: ClassVar[str] = "fopru"
    paper: ClassVar[str] = "arXiv 2411.14164"
    year: ClassVar[int] = 2024
    kind: ClassVar[str] = "attention"

    keep: Keep = option(0.25, "what survives: a float is a fraction of the tokens, an int is a number of tokens")
    strategy: str = option("rank", "rank: best tokens; row: best rows of the grid", choices=("rank", "row"))
    source: str = option("received", "whose attention counts: received or cls", choices=("received", "cls"))

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("saliency", self.source),)

    def select(self, view: View) -> Selection:
        scores = view["saliency"].float()
        k = n_keep(self.keep, view.count)
        return Selection(top_k(scores if self.strategy == "rank" else self._by_row(view, scores), k))

    def _by_row(self, view: View, scores: Tensor) -> Tensor:
        """Scores in which every token of a better row stands before every token of a worse one."""
        if view.grid is None:
            raise BadInput("fopru with strategy='row' needs the grid (t, h, w) of the span.")
        t, h, w = view.grid
        if t * h * w != view.count:
            raise BadInput(
                f"fopru with strategy='row' needs the whole {t} x {h} x {w} grid, but {view.count} tokens are left. "
                "Make it the first stage."
            )
        rows = scores.unflatten(-1, (t * h, w))
        row_rank = _rank(rows.mean(-1))
        token_rank = _rank(rows)
        return (row_rank[..., None] * w + token_rank).flatten(-2)


def _rank(scores: Tensor) -> Tensor:
    """0 for the lowest score, n - 1 for the highest; of equal scores the lowest index ranks higher."""
    n = scores.shape[-1]
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return n - 1 - order.argsort(dim=-1)
