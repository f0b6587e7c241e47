"""VisPruner: important tokens by encoder attention, and a diverse rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import unit_rows
from tokenprune.core.selection import Selection, order_of
from tokenprune.methods.base import Method, View, keep_option, option, source_option
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class VisPruner(Method):
    """VisPruner (Zhang et al., ICCV 2025, arXiv 2412.01818).

    Of k tokens, int(k * important) are those that the CLS row attends to most (`source="received"` for encoders without
    CLS). The others, in order of attention, are thinned: every second one is compared with the ones between (cosine of
    encoder features), and the up to 8 most alike of them leave; the list is then those that stay, most alike first,
    followed by the ones between, and so on until k - int(k * important) are left.

    The published code fails where an odd number is to be thinned, and joins the tokens of a batch into one row.
    """

    name: ClassVar[str] = "vispruner"
    paper: ClassVar[str] = "arXiv 2412.01818"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "attention, diversity"
    origin: ClassVar[Origin] = Origin("code", "Theia-4869/VisPruner", "aefa01ad")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("an odd number can be thinned", "the code fails"),
        Difference("every picture of a batch is its own", "the code joins them into one row"),
        RENUMBERED,
    )

    keep: Keep = keep_option(0.222)
    important: float = option(0.5, "share of the kept tokens that are chosen by attention", low=0.0, high=1.0)
    source: str = source_option("cls")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("saliency", self.source), Need("vision_features"))

    def with_attention_share(self, share: float) -> VisPruner:
        return replace(self, important=share)

    def select(self, view: View) -> Selection:
        k = self.budget(view)
        important = int(k * self.important)
        order = order_of(view["saliency"].float())
        unit = unit_rows(view["vision_features"])
        rest = self._thin(unit @ unit.mT, order[:, important:], k - important)
        return Selection(torch.cat([order[:, :important], rest], dim=1).sort(dim=-1).values)

    @staticmethod
    def _thin(likeness: Tensor, rest: Tensor, target: int) -> Tensor:
        if target == 0:
            return rest[:, :0]
        n, flat = likeness.shape[-1], likeness.flatten(1)
        while rest.shape[1] > target:
            even, odd = rest[:, ::2], rest[:, 1::2]
            pairs = (even[..., None] * n + odd[:, None]).flatten(1)
            alike = order_of(flat.gather(1, pairs).unflatten(1, (even.shape[1], -1)).amax(-1))
            leave = min(8, rest.shape[1] - target, even.shape[1])
            rest = torch.cat([even.gather(1, alike[:, leave:]), odd], dim=1)
        return rest
