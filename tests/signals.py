"""Signals: made up for `select`, and listened to in a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenprune import Selection, prune
from tokenprune.methods.base import Method
from tokenprune.signals.table import SIGNALS

SIZES = {"m": 4, "q": 2, "H": 3, "K": 2, "d": 8, "e": 8, "v": 5, "p": 7, "c": 6, "g": 8, "x": 12, "r": 12}


def signals(n, spans=None, seed=0, frames=1):
    """Every signal there is, for n tokens and 4 tokens of text."""
    made = torch.Generator().manual_seed(seed)
    front = () if spans is None else (spans,)
    sizes = SIZES | {"n": n, "t": frames}
    found = {}
    for name, signal in SIGNALS.items():
        shape = [sizes[axis] for axis in signal.axes]
        positive = "attention" in name or signal.ndim == 1
        found[name] = (torch.rand if positive else torch.randn)(*front, *shape, generator=made)
    found["voxels"] = (7 * found["voxels"]).long()
    return found


@dataclass(frozen=True)
class Hear(Method):
    """Notes its signals and keeps everything."""

    name: ClassVar[str] = "hear"
    paper: ClassVar[str] = "test"
    year: ClassVar[int] = 0
    kind: ClassVar[str] = "baseline"
    heard: ClassVar[list] = []
    reads: tuple = ()

    @property
    def needs(self):
        return self.reads

    def select(self, view):
        self.heard.append((view.grids, view.signals))
        return Selection(torch.arange(view.count).expand(view.spans, -1))


def listen(model, inputs, at, *needs):
    """The signals of each span of a prompt in reading order, and the spans."""
    Hear.heard.clear()
    with torch.no_grad(), prune(model, Hear(keep=1.0, reads=needs), at=at) as run:
        model(**inputs)
        spans = run.spans
    found = [
        {name: x[i] for name, x in signals.items()}
        for _, signals in Hear.heard
        for i in range(len(next(iter(signals.values()))))
    ]
    return found, spans
