"""The CPU bars: `python -m eval.bench.cpu` (under an hour on two cores; cells that the file has are kept).

A 16-layer, hidden-1024 random Llama behind a small CLIP. Needs the machine for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor

from eval.bench import startup
from eval.bench.bars import Bar, as_rows, of_prefill
from eval.bench.cells import Cell, run
from eval.results import RESULTS, write
from eval.selection_cost import time_call
from tokenprune import Plan
from tokenprune.bench.compare import Spread, compare
from tokenprune.bench.workload import workload
from tokenprune.core.diversity import cosine_distance, max_min

SHAPE = "llama-1024"
FEW = ("divprune", "visionzip", "fastv", "sparsevlm")
CELLS = (
    Cell(SHAPE, 576, 1, (0.25,), rounds=5),
    Cell(SHAPE, 2304, 1, (0.25,), rounds=3, new_tokens=2),
    Cell(SHAPE, 6272, 1, (0.1,), rounds=2, new_tokens=2),
    Cell(SHAPE, 576, 8, (0.25,), rounds=3, methods=FEW),
    Cell(SHAPE, 2304, 8, (0.1,), rounds=2, methods=FEW, new_tokens=2),
)


def hooks(rounds: int, console: Console) -> Bar:
    """What everything costs that is not choosing: keep=1.0 beside dense."""
    found = compare(workload(SHAPE, 576), {"uniform 1.0": Plan.of("uniform", keep=1.0)}, rounds, 0)
    ratio = found.outcomes[0].speedup
    console.print(f"hooks: dense / pruned at keep 1.0: {ratio}")
    return Bar("hooks at keep 1.0", f"{SHAPE} n=576", 1 / ratio.median, 1 / ratio.high, 1 / ratio.low, 1.02, True)


@torch.inference_mode()
def loop(rounds: int, console: Console) -> Bar:
    """The max-min loop with its running minimum against reading all chosen rows again at each pick."""
    n, k = 3136, 784
    torch.manual_seed(0)
    distance = cosine_distance(torch.randn(1, n, 1024))
    start = distance.sum(-1)
    same: list[Tensor] = [max_min(distance, k, start)[0], reread(distance[0], k, start[0])]
    if not torch.equal(*same):
        raise RuntimeError("The two loops picked different tokens.")
    sides: list[Callable[[], Tensor]] = [
        lambda: max_min(distance, k, start),
        lambda: reread(distance[0], k, start[0]),
    ]
    ratio = Spread.of([1 / (time_call(sides[0]) / time_call(sides[1])) for _ in range(rounds)])
    console.print(f"max-min loop, n={n}, k={k}: {ratio} x faster than reading again")
    return Bar("max-min loop against reading again", f"n={n}, k={k}", ratio.median, ratio.low, ratio.high, 10.0, False)


def reread(distance: Tensor, k: int, start: Tensor) -> Tensor:
    """The same picks, each from the minimum over the rows of all chosen tokens."""
    picks = [int(start.argmax())]
    chosen = torch.zeros(len(distance), dtype=torch.bool)
    for _ in range(k - 1):
        chosen[picks[-1]] = True
        picks.append(int(distance[picks].amin(0).masked_fill(chosen, float("-inf")).argmax()))
    return torch.tensor(picks)


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS / "bench_cpu.json",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the small measurements.")] = 15,
    again: Annotated[str, typer.Option(help="A cell to measure anew, by its name in the file.")] = "",
) -> None:
    """Measure what is missing, then write all bars."""
    console = Console()
    small = [hooks(rounds, console), loop(5, console), *startup.bars(console)]
    result = run(CELLS, out, "cpu", torch.float32, console, again)
    result["bars"] = as_rows([*small, *of_prefill(result)])
    write(out, result)
    missed = [bar for bar in result["bars"] if not bar["met"]]
    console.print(f"{len(result['bars']) - len(missed)} bars met, {len(missed)} missed")
    for bar in missed:
        console.print(f"missed: {bar['name']}, {bar['where']}: {bar['value']:.3f} (limit {bar['limit']})")


if __name__ == "__main__":
    typer.run(main)
