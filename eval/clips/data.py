"""Training batches: clips, labels of every token and packed questions, each batch a pure function of its number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eval.clips.packed import patches
from eval.clips.questions import ASK, TYPES
from eval.clips.world import COLOURS, EVENTS, KINDS, SIDE, STEPS, WAYS, Clip, make_clip, rng_for
from eval.scenes.data import encode
from eval.training import Endless

PACK = (*("first", "last", "count", "change"), *("colour",) * 2, *("direction",) * 3, *("when",) * 3)
SHOWN = 6
LENGTH = 12  # tokens of the longest question with its answer


@dataclass
class Batch:
    """B clips. `ids` are token ids [B, G, 12] of packed questions, `weight` weighs the loss of each, `types` [B, G]
    indexes TYPES."""

    pixels: Tensor  # [B, 16, 64, 384] patches of every step
    owner: Tensor  # [B, 16, 16, 4] kind, colour, way and event of the actor on each token, -1 for background
    flash: Tensor  # [B, 16] 1 where a step flashes
    shown: Tensor  # [B, 6] steps for the encoder's own training, those of events among them
    ids: Tensor
    weight: Tensor
    types: Tensor


class Batches(Endless):
    """Batches of clips."""

    def batch(self, number: int) -> Batch:
        rows = [self._row(number * self.size + i) for i in range(self.size)]
        names = ("pixels", "owner", "flash", "shown", "ids", "weight", "types")
        return Batch(**{name: torch.stack(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)})

    def _row(self, index: int) -> tuple[Tensor, ...]:
        rng = rng_for(self.split, index)
        clip = make_clip(rng)
        asked = [ASK[kind](rng, clip) or ASK["direction"](rng, clip) for kind in PACK]
        pairs = [encode(self.tokenizer, question, LENGTH) for question in asked]
        events = {step for actor in clip.actors for step in (actor.step, actor.change) if step >= 0}
        steps = [*events, *(s for s in rng.permutation(STEPS).tolist() if s not in events)]
        flash = torch.zeros(STEPS).index_fill(0, torch.tensor(clip.flashes, dtype=torch.long), 1)
        return (
            patches(torch.from_numpy(clip.pixels)).to(torch.bfloat16),
            torch.from_numpy(labels(clip)),
            flash,
            torch.tensor(steps[:SHOWN]),
            torch.tensor([ids for ids, _ in pairs]),
            torch.tensor([weight for _, weight in pairs]),
            torch.tensor([TYPES.index(question.type) for question in asked]),
        )


def labels(clip: Clip) -> np.ndarray:
    """int64 [16, 16, 4]: kind, colour, way and event of what is on each token, -1 for background."""
    found = np.full((STEPS, SIDE * SIDE, 4), -1)
    for i, actor in enumerate(clip.actors):
        for step in range(actor.step, STEPS):
            frame = 2 * step + 1
            way = actor.way if actor.place(frame) != actor.place(frame - 1) else "nowhere"
            known = (
                KINDS.index(actor.kind),
                list(COLOURS).index(actor.colour_at(frame)),
                list(WAYS).index(way),
                EVENTS.index(actor.event(step)),
            )
            found[step, clip.owner[step] == i] = known
    return found
