"""The GPU bars: `make bench-gpu` on a machine with a CUDA GPU and Triton (about 20 minutes on an H100; cells that the
file has are kept, so it can be stopped and started again).

Random bfloat16 weights in the shapes of LLaVA-1.5-7B, and of LLaVA-OneVision-Qwen2-7B with 32 frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from eval.bench import kernels
from eval.bench.bars import Bar, as_rows, of_prefill
from eval.bench.cells import Cell, run
from eval.results import RESULTS, write

LLAVA, VIDEO = "llava-1.5-7b", "onevision-qwen2-7b"
IMAGE = ("divprune", "visionzip", "vflowopt", "fastv", "sparsevlm", "random")
CLIP = ("fastvid", "divprune", "dycoke", "evs", "vidcom2", "holitom", "flashvid", "fastv")
KEEPS = (0.25, 0.1, 0.05)
CELLS = (
    Cell(LLAVA, 576, 1, KEEPS, rounds=7, methods=IMAGE, new_tokens=16),
    Cell(LLAVA, 576, 8, KEEPS, rounds=5, methods=IMAGE, new_tokens=16),
    Cell(VIDEO, 6272, 1, KEEPS, rounds=5, methods=CLIP, new_tokens=16),
    Cell(VIDEO, 6272, 8, (0.1,), rounds=3, methods=("fastvid", "divprune", "fastv"), new_tokens=8),
    Cell(LLAVA, 2304, 1, (0.1,), rounds=5, methods=("vflowopt", "divprune"), new_tokens=64),
)


def speed(result: dict[str, Any]) -> list[Bar]:
    """Published speed-ups at 10 %, and that a batch of 8 is never slower than dense."""
    found = []
    for cell, measured in result["cells"].items():
        dense = _total(measured["dense"], measured["new_tokens"])
        for one in measured["outcomes"]:
            method, keep = one["label"].split()
            where, prefill = f"{cell}: {one['label']}", one["speedup"]
            spread = (prefill["median"], prefill["low"], prefill["high"])
            if cell.startswith(VIDEO) and keep == "0.1" and method == "fastvid" and measured["batch"] == 1:
                found.append(Bar("prefill speed-up (FastVID)", where, *spread, 7.1, False))
            if "n=2304" in cell and method == "vflowopt":
                total = dense / _total(one["pruned"], measured["new_tokens"])
                found.append(Bar("total speed-up (VFlowOpt)", where, total, total, total, 3.8, False))
            if measured["batch"] == 8:
                found.append(Bar("batch 8 against dense", where, *spread, 1.0, False))
    return found


def _total(cost: dict[str, Any], new_tokens: int) -> float:
    return cost["times"]["first_token"]["median"] + new_tokens * cost["times"]["token"]["median"]


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS / "bench_gpu.json",
    again: Annotated[str, typer.Option(help="A cell to measure anew, by its name in the file.")] = "",
) -> None:
    """Measure what is missing, kernels first, then write all bars."""
    console = Console()
    if not torch.cuda.is_available():
        console.print("There is no CUDA GPU here: the GPU bars are not measured.")
        raise typer.Exit(1)
    measured = kernels.measure(console)
    result = run(CELLS, out, "cuda", torch.bfloat16, console, again)
    result["kernels"] = measured
    result["bars"] = as_rows([*kernels.bars(measured), *of_prefill(result), *speed(result)])
    write(out, result)
    missed = [bar for bar in result["bars"] if not bar["met"]]
    console.print(f"{len(result['bars']) - len(missed)} bars met, {len(missed)} missed")


if __name__ == "__main__":
    typer.run(main)
