"""IPCV: groups that an early encoder block changes least skip the blocks behind, and come back at the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection, gather_rows, top_k
from tokenprune.methods.base import BudgetMethod, Schedule, View, keep_option, option, rounding_option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.methods.place import Vision
from tokenprune.signals.need import Need

CHUNK = 2**24  # distances at once


@dataclass(frozen=True)
class IPCV(BudgetMethod):
    """IPCV (arXiv 2512.18747), inside the vision encoder; the LLM gets all tokens, for a method of its own.

    Of each picture or frame the groups stay that the block before moved most. A group that goes waits as it was, and
    comes back moved by the mean change of its `neighbours` nearest groups that stayed (Euclidean distance of states at
    the stage). In the first `whole` blocks attention still sees all groups, rebuilt so, and only the MLP is spared.
    """

    name: ClassVar[str] = "ipcv"
    paper: ClassVar[str] = "arXiv 2512.18747"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "encoder, reconstruction"
    origin: ClassVar[Origin] = Origin("code", "Perkzi/IPCV", "29726f04")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("groups of patches go", "what becomes one token is one unit here; the code ranks single patches"),
        Difference(
            "each picture or frame keeps its share, and neighbours are its own",
            "the code ranks all of a call together, so that one picture can lose everything",
        ),
        Difference("sequences are cut where the rows that stay lie", "the code counts one row to the segment before"),
        Difference("features taken between blocks have the rows that went, rebuilt", "the code's model takes none"),
    )
    needs: ClassVar[tuple[Need, ...]] = (Need("vision_changes"), Need("vision_rows"))
    returns: ClassVar[bool] = True

    keep: Keep = keep_option(0.35)
    rounding: str = rounding_option("down")
    block: int = option(3, "the encoder block before which it stands", low=1)
    whole: int = option(7, "blocks from there on whose attention still sees everything", low=0)
    neighbours: int = option(10, "groups whose mean change a group that went gets", low=1)

    @property
    def whole_blocks(self) -> int:
        return self.whole

    def schedule(self, layers: int) -> Schedule:
        return [(Vision(self.block), self)]

    def choose(self, view: View) -> Selection:
        k = self.budget(view)
        index = top_k(view["vision_changes"].float(), k)
        return replace(Selection(index), neighbours=self._nearest(view["vision_rows"].float(), index))

    def _nearest(self, x: Tensor, index: Tensor) -> Tensor:
        """int64 [S, n, m]: for each row of x [S, n, r] the nearest of the rows `index` [S, k]."""
        kept, found = gather_rows(x, index), []
        m, step = min(self.neighbours, index.shape[1]), max(1, CHUNK // index.shape[1])
        for part in x.split(step, dim=1):
            near = torch.cdist(part, kept).topk(m, dim=-1, largest=False).indices
            found.append(index.gather(1, near.flatten(1)).view_as(near))
        return torch.cat(found, dim=1)
