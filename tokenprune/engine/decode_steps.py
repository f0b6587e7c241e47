"""Decoding steps: which layers choose, which look at what was chosen, and what each step cost."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenprune.core.selection import to_device
from tokenprune.engine.cache import PrunedLayer
from tokenprune.engine.decode_cache import RetainedLayer, VisibleTokens
from tokenprune.engine.select import check_selection
from tokenprune.methods.base import View
from tokenprune.methods.decoding import DecodingMethod
from tokenprune.methods.place import Decode
from tokenprune.methods.stage import Stage
from tokenprune.signals import taps
from tokenprune_kernels.attention import row_attention

log = logging.getLogger("tokenprune")


@dataclass(frozen=True)
class StepReport:
    """One decoding step.

    chosen: for each choosing stage, visual tokens of the longest row that the step looked at, of `visual` there are.
    anew: stages that chose anew. selection_ms and attention_ms: host time in choosing, and in the attention of all
    layers. held_bytes: keys and values in memory, the copies of what is looked at counted; read_bytes: those that
    attention read. columns: for each stage, for each row of the batch the ascending prompt columns looked at.
    """

    visual: int
    chosen: list[int]
    anew: int
    selection_ms: float
    attention_ms: float
    held_bytes: int
    read_bytes: int
    columns: list[list[Tensor]]


class Chooser(NamedTuple):
    """A stage at every decoding step. layer: the one that it chooses by, which sees everything."""

    layer: int
    method: DecodingMethod
    stage: Stage


class DecodeStages:
    """The stages at every decoding step of a run, by the layer from which on they show a choice."""

    def __init__(self, stages: list[Stage], windows: list[int | None]) -> None:
        self.windows, found = windows, []
        for stage in stages:
            place, method = stage.place, stage.method
            assert isinstance(place, Decode), "Setup hands over those alone"
            assert isinstance(method, DecodingMethod), "Stage lets no other stand there"
            found.append(Chooser(place.start - 1, method, stage))
        self.choosers = sorted(found, key=lambda one: one.layer)
        self.by_layer = {one.layer: one for one in self.choosers}
        self.first = 0 if any(one.method.reuses for one in found) else self.choosers[0].layer

    @property
    def stages(self) -> list[Stage]:
        """The stages in the order of their layers."""
        return [one.stage for one in self.choosers]

    def step(self, layers: list[Any], single: bool) -> DecodeStep | None:
        """Start a pass of a single token; several at once see everything."""
        if single:
            return DecodeStep(self, layers)
        for layer in layers:
            if isinstance(layer, RetainedLayer):
                layer.widen()
        return None

    def cache_layers(self) -> dict[int, type[PrunedLayer]]:
        """The layers that have to keep everything and show a part."""
        full = [i for i in range(self.first, len(self.windows)) if self.windows[i] is None]
        return dict.fromkeys(full, RetainedLayer)


class DecodeStep:
    """One pass of one token through the layers. layers: of the cache; those that choose are `RetainedLayer`s."""

    def __init__(self, plan: DecodeStages, layers: list[Any]) -> None:
        self.plan, self.layers = plan, layers
        self.visible = [layers[one.layer].visible_tokens or VisibleTokens() for one in plan.choosers]
        for one, visible in zip(plan.choosers, self.visible, strict=True):
            layers[one.layer].visible_tokens = visible
        self.passed = -1  # the last stage that has chosen in this step
        self.looked: bool | None = None
        self.anew, self.selecting = 0, 0.0
        self.clock = taps.clock()

    def prepare(self, i: int, attention: nn.Module) -> bool:
        """Narrow or widen the cache of layer i, or listen to it; whether it shows other rows than the one before."""
        layer = self.layers[i]
        if not isinstance(layer, RetainedLayer):
            return False
        chooser = self.plan.by_layer.get(i)
        if chooser is not None:
            layer.widen()
            taps.listeners()[attention] = self._listener(chooser.method, layer)
        else:
            layer.look_at(self._choice_to_show())
        differs = layer.shown is not None or bool(self.looked)
        self.looked = layer.shown is not None
        return differs

    def _choice_to_show(self) -> VisibleTokens | None:
        if self.passed >= 0:
            return self.visible[self.passed]
        last = self.visible[-1]
        return last if self.plan.choosers[-1].method.reuses and last.last is not None else None

    def _listener(self, method: DecodingMethod, layer: RetainedLayer) -> taps.Listener:
        def listen(query: Tensor, key: Tensor, scaling: float, mask: object, softcap: float) -> None:
            began = time.perf_counter()
            self.passed += 1
            rows = query.new_zeros(len(query), 1, dtype=torch.long)
            paid = row_attention(query, key, rows, layer.filled.valid[:, None], scaling, softcap, mean=True)[:, 0]
            self.anew += self._choose(method, layer, self.visible[self.passed], paid)
            self.selecting += time.perf_counter() - began

        return listen

    @staticmethod
    def _choose(method: DecodingMethod, layer: RetainedLayer, visible: VisibleTokens, paid: Tensor) -> bool:
        """Look anew where the method says so; whether any row of the batch did. paid: float32 [B, rows], mean over the
        heads."""
        counts, visual, there = layer.visual_rows()
        slots = layer.filled.slots.gather(1, visual)
        row = paid.gather(1, visual).masked_fill(~there, 0)
        last = visible.last if visible.last is None or visible.last.shape == row.shape else None
        moves = method.moves(row, last)
        visible.last = row
        anew = bool(moves.any())
        stands = method.otherwise == "previous" and last is not None
        if not anew and (stands or visible.chosen is None):
            return False
        everything = torch.zeros_like(moves)[:, None].expand(-1, layer.logical).clone()
        everything.scatter_(1, slots, there)
        whole = all(method.budget(View(c, 1, (), {}, total=c)) == c for c in set(counts) - {0})
        if anew and not whole:
            picked = torch.zeros_like(everything)
            for count in sorted(set(counts) - {0}):
                mine = to_device([i for i, c in enumerate(counts) if c == count], row.device)
                view = View(count, len(mine), (), {"attention_row": row[mine, None, :count]}, total=count)
                index = check_selection(method.select(view), method, view).index
                picked[mine] = picked[mine].scatter(1, slots[mine].gather(1, index), True)
        else:
            picked = everything
        if stands:
            old = visible.chosen if visible.chosen is not None else everything
            old = torch.nn.functional.pad(old, (0, everything.shape[1] - old.shape[1]))
        else:
            old = everything
        visible.chosen = torch.where(moves[:, None], picked, old) if anew and not whole else None
        visible.version += 1
        return anew

    def finish(self) -> StepReport:
        """What the step cost."""
        seconds = self.clock()
        held = [layer.nbytes() for layer in self.layers if isinstance(layer, RetainedLayer)]
        choosing = [self.layers[one.layer] for one in self.plan.choosers]
        counts = [layer.visual_rows()[0] for layer in choosing]
        columns = [columns_of(layer, visible) for layer, visible in zip(choosing, self.visible, strict=True)]
        if log.isEnabledFor(logging.DEBUG):
            stages = [f"{one.method.name} from layer {one.layer + 1}" for one in self.plan.choosers]
            seen = [[len(row) for row in rows] for rows in columns]
            told = "; ".join(f"{stage} looks at {n} of {of}" for stage, n, of in zip(stages, seen, counts, strict=True))
            log.debug("decoding step: %s; %d chose anew", told, self.anew)
        return StepReport(
            visual=max(map(max, counts)),
            chosen=[max(map(len, rows)) for rows in columns],
            anew=self.anew,
            selection_ms=1000 * self.selecting,
            attention_ms=1000 * (seconds - self.selecting),
            held_bytes=sum(whole for whole, _ in held),
            read_bytes=sum(read for _, read in held),
            columns=columns,
        )


def columns_of(layer: RetainedLayer, visible: VisibleTokens) -> list[Tensor]:
    """For each row of the batch the ascending prompt columns that a visible looks at."""
    if visible.columns is not None and visible.columns[0] == visible.version:
        return visible.columns[1]
    looked, slots = layer.visual, layer.filled.slots
    if visible.chosen is not None:
        chosen = visible.chosen
        looked = looked & chosen.gather(1, slots.clamp(max=chosen.shape[1] - 1))
    found = [own[mask] for own, mask in zip(slots, looked, strict=True)]
    visible.columns = visible.version, found
    return found
