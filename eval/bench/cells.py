"""The cells of a benchmark: one workload each, with the ways of pruning that are compared on it."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from eval.results import write
from tokenprune import MissingSignal, Plan
from tokenprune.bench.compare import compare
from tokenprune.bench.record import commit
from tokenprune.bench.workload import Workload, workload
from tokenprune.errors import unknown
from tokenprune.methods.base import places
from tokenprune.methods.place import Layer
from tokenprune.methods.registry import all_methods

SLOW = {"llava_scissor": "its budget is found by halving, on the host: see video_cost.json"}
LONG = dict.fromkeys(("light_colpali", "vispruner"), "chooses for longer than the dense prefill")


@dataclass(frozen=True)
class Cell:
    """One workload. methods: names, with `keep` for each in `keeps`; None: every method that it can serve."""

    shape: str
    tokens: int
    batch: int
    keeps: tuple[float, ...]
    rounds: int
    methods: tuple[str, ...] | None = None
    new_tokens: int = 4

    @property
    def name(self) -> str:
        """Its name in the result file."""
        return f"{self.shape} n={self.tokens} batch={self.batch}"


def before_llm() -> list[str]:
    """The methods that choose once, before the LLM."""
    known = all_methods().items()
    return [name for name, cls in known if not cls.decodes and places(cls) == [Layer(0)] and name not in SLOW]


def inside_llm() -> list[str]:
    """The methods that choose inside the LLM alone."""
    return [name for name, cls in all_methods().items() if not cls.decodes and places(cls)[0].order > Layer(0).order]


def prunings(cell: Cell, work: Workload) -> tuple[dict[str, Plan], dict[str, str]]:
    """What is compared, and why the others are not."""
    video = work.images == "frames" or "pixel_values_videos" in work.inputs
    found, refused = {}, dict(SLOW)
    for name in cell.methods or [*before_llm(), *inside_llm()]:
        if not video and "video" in all_methods()[name].kind:
            continue
        if work.visual().sum(1).max() > 6000 and name in LONG:
            refused[name] = LONG[name]
            continue
        try:
            Plan.of(name, keep=0.5).check(work.model)
        except MissingSignal as error:
            refused[name] = str(error)
            continue
        if name in ("quota", "streamvln"):
            refused[name] = "reads a signal that the user brings"
            continue
        found |= {f"{name} {keep}": Plan.of(name, keep=keep) for keep in cell.keeps}
    return found, refused


def run(
    cells: Sequence[Cell], out: Path, device: str, dtype: torch.dtype, console: Console, again: str = ""
) -> dict[str, Any]:
    """Measure the cells that the result file lacks, and the one whose name is `again`; it is written after each."""
    result: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    result.setdefault("cells", {})
    if again and again not in {cell.name for cell in cells}:
        raise unknown("cell", again, [cell.name for cell in cells])
    for cell in cells:
        if cell.name in result["cells"] and cell.name != again:
            console.print(f"{cell.name}: there already")
            continue
        work = workload(cell.shape, cell.tokens, cell.batch, device, dtype)
        plans, refused = prunings(cell, work)
        console.print(f"{cell.name}: {len(plans)} ways of pruning, {cell.rounds} rounds")
        measured = compare(work, plans, cell.rounds, cell.new_tokens, lambda text: console.print(f"  {text}"))
        result["cells"][cell.name] = measured.to_dict() | {"refused": refused, "dtype": str(dtype), "commit": commit()}
        write(out, result)
        del work
        gc.collect()
        torch.cuda.empty_cache() if device == "cuda" else None
    return result
