"""What a stage before or inside the vision encoder chooses: groups of each picture, tile, frame or video."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tokenprune.core.selection import indices_of, to_device
from tokenprune.engine.encoder_rows import EncoderRows
from tokenprune.engine.select import check_selection
from tokenprune.errors import BadInput
from tokenprune.methods.base import View
from tokenprune.methods.stage import Stage
from tokenprune.signals.inside import Inside
from tokenprune.signals.table import SIGNALS


class Mixture(NamedTuple):
    """What a method mixes in one unit: int64 [n] the groups that go in, int64 [k] which of these stay, float [k, n]."""

    groups: Tensor
    kept: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Choice:
    """Of all groups of a call.

    alive: bool [G], what is left. counts: how many of each segment. stands: int64 [G], what stands for each group;
    None: the nearest. neighbours: int64 [G, m], groups by whose mean change each one comes back, -1 for fewer; None:
    what goes does not.
    """

    alive: Tensor
    counts: list[int]
    stands: Tensor | None
    mixed: list[Mixture]
    neighbours: Tensor | None = None


@torch.no_grad()
def choose(stage: Stage, rows: EncoderRows, inside: Inside) -> Choice:
    """Run a method on every segment, or every video; those of one shape together."""
    signals = {}
    for need in stage.method.needs:
        provide = SIGNALS[need.signal].inside
        assert provide is not None, "Stage lets none stand here that needs what this place does not give"
        signals[need.signal] = provide(inside, need)
    device = rows.alive.device
    alive, stands, anchored = torch.zeros_like(rows.alive), rows.stands.clone(), False
    mixed: list[Mixture] = []
    near: list[tuple[Tensor, Tensor]] = []
    counts: list[int] | None = [0] * len(rows.counts)
    for (grid, count), units in _units(stage, rows).items():
        t, h, w = grid
        own = to_device([first for first, _ in units], device)[:, None] + torch.arange(t * h * w, device=device)
        tokens = None if count == t * h * w else indices_of(rows.alive[own], count)
        groups = own if tokens is None else own.gather(1, tokens)
        given = {name: value[groups] for name, value in signals.items()}
        view = View(count, len(units), (grid,), given, tokens, t * h * w)
        selection = check_selection(stage.method.select(view), stage.method, view)
        chosen = groups.gather(1, selection.index.to(device, non_blocking=True))
        real = torch.ones_like(chosen) if selection.valid is None else selection.valid.long()
        alive |= (
            torch.zeros_like(alive, dtype=torch.long).scatter_reduce(0, chosen.flatten(), real.flatten(), "amax") > 0
        )
        for row in range(len(units)):
            index, weights = selection.span(row)
            if weights is not None:
                mixed.append(Mixture(groups[row], index.to(device, non_blocking=True), weights.to(device)))
        if selection.anchors is not None:
            anchored = True
            stands[groups] = groups.gather(1, selection.anchors.to(device))
        if selection.neighbours is not None:
            own = selection.neighbours.to(device, non_blocking=True)
            near.append((groups, groups.gather(1, own.flatten(1)).view_as(own)))
        if selection.valid is not None or t > 1:
            counts = None  # the host has to look
        elif counts is not None:
            for _, segment in units:
                counts[segment] = selection.index.shape[1]
    if counts is None:
        counts = [int(one.sum()) for one in alive.cpu().split([h * w for h, w in rows.groups.grids])]
    emptied = [i for i, (before, after) in enumerate(zip(rows.counts, counts, strict=True)) if before and not after]
    if emptied and (not stage.method.adaptive or not any(counts)):
        raise BadInput(
            f"keep={stage.method.keep} of {stage.method.name} leaves nothing of a picture or frame of "
            f"{rows.counts[emptied[0]]} tokens {stage.place}. Give a larger keep."
        )
    return Choice(alive, counts, stands if anchored else None, mixed, _table(near, alive))


def _table(near: list[tuple[Tensor, Tensor]], alive: Tensor) -> Tensor | None:
    """int64 [G, m] from the groups [S, n] and neighbours [S, n, m'] of every unit."""
    if not near:
        return None
    table = torch.full((len(alive), max(own.shape[-1] for _, own in near)), -1, device=alive.device)
    for groups, own in near:
        table[groups, : own.shape[-1]] = own
    return table


def _units(stage: Stage, rows: EncoderRows) -> dict[tuple, list[tuple[int, int]]]:
    """What is chosen from: by grid and number of groups left, the first group and the first segment of each."""
    found: dict[tuple, list[tuple[int, int]]] = defaultdict(list)
    groups = rows.groups
    group = segment = 0
    for frames in groups.frames:
        together = frames if stage.method.over_frames else 1
        for _ in range(frames // together):
            h, w = groups.grids[segment]
            count = sum(rows.counts[segment : segment + together])
            if count:
                found[(together, h, w), count].append((group, segment))
            group, segment = group + together * h * w, segment + together
    return found
