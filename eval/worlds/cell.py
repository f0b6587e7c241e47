"""One cell of a comparison: a method, a budget and perhaps a position policy on a bundled model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from statistics import quantiles
from time import process_time
from typing import Any

import torch

from eval.worlds.base import World
from eval.worlds.judge import judge, prepare, questions, sum_scores
from eval.worlds.remember import remembered
from tokenprune import prune
from tokenprune.chat import Chat
from tokenprune.engine.run import Run
from tokenprune.signals.table import SIGNALS

TIMED = 8  # prompts for the time to the first token


def label(cell: dict[str, Any]) -> str:
    """A cell's method with its options, seeds left out."""
    return " ".join([cell["method"], *(f"{k}={v}" for k, v in cell["options"].items() if k != "seed")])


@dataclass
class Cells:
    """Judges settings one after the other on `count` questions of each type; what the encoder gave is kept."""

    world: World
    chat: Chat
    count: int
    encoded: dict[bytes, Any] = field(default_factory=dict)

    def judge(self, setting: dict[str, Any]) -> dict[str, Any]:
        """Right answers of one setting, and what the last prompt cost, off its report."""
        world, chat, count = self.world, self.chat, self.count
        method, options, keep = (setting[name] for name in ("method", "options", "keep"))
        if method in world.baselines:
            return world.baselines[method](world, chat, keep, count)
        policy = {"positions": setting["positions"]} if "positions" in setting else {}
        attach = partial(prune, chat.model, method, keep=keep, **policy, **options)
        with attach() as run, self.remember(run):
            scores = judge(world, chat, count, note=f"{label(setting)} {keep} {' '.join(policy.values())}")
            report = run.report()
        found = {
            **sum_scores(scores),
            "average_tokens": report.average_tokens * world.tokens / report.tokens,
            "final_tokens": report.final_tokens * world.tokens / report.tokens,
            "flops": report.flops / report.dense_flops,
        }
        if world.decodes:
            steps = report.decoding
            found["looked_at"] = steps.looked_at / steps.visual if steps else None
        if world.both_sides:
            own = report.encoder.flops if report.encoder else self.encoder_flops
            found["flops_both_sides"] = (report.flops + own) / (report.dense_flops + self.encoder_flops)
            found["first_token"] = self.time_first_token(attach)
        return found

    def remember(self, run: Run) -> AbstractContextManager:
        """The encoder runs once for each batch of pictures, unless a stage reads signals in it or stands in it."""
        needs = [need for stage in run.stages for need in stage.method.needs]
        if any(SIGNALS[need.signal].encoder or SIGNALS[need.signal].encoder_only for need in needs):
            return nullcontext()
        return remembered(self.world.tower(self.chat.model), self.encoded)

    @cached_property
    def encoder_flops(self) -> int:
        """What the unpruned encoder does in the last prompt that is judged."""
        with prune(self.chat.model, "uniform", keep=1.0, at="pixels") as run:
            judge(self.world, self.chat, self.count, types=self.world.types[-1:])
            encoder = run.report().encoder
        assert encoder is not None
        return encoder.dense_flops

    def time_first_token(self, attach: Callable[[], AbstractContextManager]) -> dict[str, Any]:
        """CPU time from pixels to the first token over that of the unpruned model, each picture by itself, both sides
        by turns; the median over the pictures, and the quarters of them below and above."""
        ratios = []
        for one in questions(self.world, self.world.types[0], TIMED):
            inputs = prepare(self.world, self.chat.processor, (one,))
            times = {}
            for name, side in (("pruned", attach), ("dense", nullcontext)):
                with side(), torch.inference_mode():
                    began = process_time()
                    self.chat.model.generate(**inputs, max_new_tokens=1, do_sample=False)
                    times[name] = process_time() - began
            ratios.append(times["pruned"] / times["dense"])
        low, middle, high = quantiles(ratios, n=4)
        return {"of_dense": middle, "low": low, "high": high, "pictures": TIMED}
