"""Dense, pruned and ideal by turns in one process; medians, ratios of the same round, and whether pruning pays."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from tokenprune.api import prune
from tokenprune.bench.measure import Ideal, Sample, Side, prompt, sample
from tokenprune.bench.workload import Workload, with_pictures_of
from tokenprune.engine.report import Report
from tokenprune.plan import Plan

TIMES = ("prefill", "first_token", "token", "selection")


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value a round."""
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        whole = f" ({self.low:.2f} to {self.high:.2f})" if self.low < self.high else ""
        return f"{self.median:.2f}{whole}"


@dataclass(frozen=True)
class SideCost:
    """One side: milliseconds (see `Sample`) by name, and bytes."""

    times: dict[str, Spread]
    peak_bytes: int | None
    kv_bytes: int

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> SideCost:
        """Of all rounds."""
        peaks = [s.peak_bytes for s in samples if s.peak_bytes is not None]
        times = {name: Spread.of([getattr(s, name) for s in samples]) for name in TIMES}
        return cls(times, int(median(peaks)) if peaks else None, samples[-1].kv_bytes)


@dataclass(frozen=True)
class Outcome:
    """One way of pruning beside dense and ideal. Ratios are taken within each round.

    tokens: visual tokens of the batch before, on average over the layers, and in the last one. speedup: dense / pruned
    prefill; promised: dense / pruned FLOPs of the decoder layers; over_ideal: pruned / ideal prefill, and
    net_over_ideal: the same without selection (None for methods inside the LLM: no prompt is short from the start);
    first_token, token: dense / pruned. first_over_ideal: pruned / ideal first token, the encoder included.
    """

    label: str
    tokens: tuple[int, float, int]
    pruned: SideCost
    ideal: SideCost | None
    speedup: Spread
    promised: float
    over_ideal: Spread | None
    net_over_ideal: Spread | None
    first_token: Spread
    token: Spread
    first_over_ideal: Spread | None = None

    def warnings(self) -> list[str]:
        """Why pruning does not pay, where it does not."""
        found = []
        selection = self.pruned.times["selection"].median
        saved = (self.speedup.median - 1) * self.pruned.times["prefill"].median
        if self.first_token.median < 1:
            found.append(f"{self.label} does not pay: its first token takes {1 / self.first_token.median:.2f} x dense.")
        elif self.first_token.low < 1:
            found.append(f"{self.label}: not all rounds were faster than dense; do not count on a gain.")
        if saved > 0 and selection > saved:
            found.append(
                f"{self.label}: choosing takes {selection:.1f} ms, more than the {saved:.1f} ms that it saves."
            )
        if self.token.median < 0.95:
            found.append(f"{self.label}: a decoding step takes {1 / self.token.median:.2f} x dense.")
        return found


@dataclass(frozen=True)
class Comparison:
    """All that was measured on one workload."""

    workload: str
    batch: int
    rounds: int
    new_tokens: int
    dense: SideCost
    outcomes: list[Outcome]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return asdict(self)

    def warnings(self) -> list[str]:
        """Where pruning does not pay."""
        return [text for outcome in self.outcomes for text in outcome.warnings()]


def compare(
    work: Workload,
    plans: Mapping[str, Plan],
    rounds: int = 5,
    new_tokens: int = 8,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Measure every side `rounds` times by turns, after one round to warm up. plans: by their labels."""
    reports: dict[str, Report] = {}
    shorts: dict[tuple[bool, tuple[int, ...]], tuple[Workload, Side] | None] = {}
    inside: dict[str, tuple[Workload, Side]] = {}
    before: dict[str, tuple[Workload, Side]] = {}
    for label, plan in plans.items():
        side = functools.partial(prune, work.model, replace(plan, images=work.images))
        with side() as run:
            prompt(work)
            reports[label], kept = run.report(), run.kept[-1]
        lengths, encodes = tuple(len(row) for row in kept), bool(run.encoder_stages)
        if any(stage.layer > 0 for stage in run.stages):
            inside[label] = work, side
            continue
        if (encodes, lengths) not in shorts:  # one short prompt serves all that keep as much
            shorts[encodes, lengths] = ideal_picture(work, lengths) if encodes else (work, Ideal(work, kept))
        before[label] = work, side
        short = shorts[encodes, lengths]
        if short is not None:
            before[_ideal(label)] = short
    # What is compared stands side by side: a noisy machine is slow for minutes at a time.
    sides: dict[str, tuple[Workload, Side]] = {"dense": (work, contextlib.nullcontext), **inside, **before}
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, (own, way) in sides.items():
            progress(f"round {turn} of {rounds}: {name}")
            taken = sample(own, way, new_tokens)
            if turn:
                samples[name].append(taken)
    outcomes = []
    for label in plans:
        ideal = samples.get(_ideal(label))
        outcomes.append(_outcome(label, reports[label], samples["dense"], samples[label], ideal))
    return Comparison(work.name, work.batch, rounds, new_tokens, SideCost.of(samples["dense"]), outcomes)


def ideal_picture(work: Workload, lengths: tuple[int, ...]) -> tuple[Workload, Side] | None:
    """A picture that had only the kept tokens, encoded and read; None where there is no such picture."""
    short = with_pictures_of(work, lengths[0]) if len(set(lengths)) == 1 else None
    return None if short is None else (short, contextlib.nullcontext)


def _ideal(label: str) -> str:
    return f"ideal of {label}"


def _outcome(
    label: str, report: Report, dense: list[Sample], pruned: list[Sample], ideal: list[Sample] | None
) -> Outcome:
    def ratio(over: list[Sample], under: list[Sample], name: str) -> Spread:
        return Spread.of([getattr(a, name) / max(getattr(b, name), 1e-9) for a, b in zip(over, under, strict=True)])

    net = None
    if ideal is not None:
        net = Spread.of([(p.prefill - p.selection) / i.prefill for p, i in zip(pruned, ideal, strict=True)])
    return Outcome(
        label=label,
        tokens=(report.tokens, report.average_tokens, report.final_tokens),
        pruned=SideCost.of(pruned),
        ideal=None if ideal is None else SideCost.of(ideal),
        speedup=ratio(dense, pruned, "prefill"),
        promised=report.dense_flops / report.flops,
        over_ideal=None if ideal is None else ratio(pruned, ideal, "prefill"),
        net_over_ideal=net,
        first_token=ratio(dense, pruned, "first_token"),
        token=ratio(dense, pruned, "token"),
        first_over_ideal=None if ideal is None else ratio(pruned, ideal, "first_token"),
    )
