"""Pruning on both sides of a model: `python -m eval.bench.encoder` (a quarter of an hour on two cores).

Qwen2.5-VL-3B's and Qwen3-VL-2B's proportions at a quarter of their depth, random weights, one picture of a megapixel.
Needs the machine for itself. With `--device cuda`: bfloat16, whole models, and a picture of four megapixels as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from eval.bench.bars import Bar, as_rows
from eval.results import RESULTS, write
from eval.selection_cost import time_call
from tokenprune import Plan
from tokenprune.bench import table
from tokenprune.bench.compare import Comparison, Spread, compare
from tokenprune.bench.measure import synchronize
from tokenprune.bench.workload import workload
from tokenprune.methods.base import View
from tokenprune.methods.pixelprune import PixelPrune

BOTH, ALONE, GENTLE = (
    "uniform 0.25, before the encoder",
    "uniform 0.25, before the LLM",
    "uniform 0.9, before the encoder",
)
PLANS = {
    BOTH: Plan.of("uniform", keep=0.25, at="pixels"),
    "pixelprune 0.25": Plan.of("pixelprune", keep=0.25),
    "random 0.25, before encoder block 2": Plan.of("random", keep=0.25, at="vision:2"),
    ALONE: Plan.of("uniform", keep=0.25),
    GENTLE: Plan.of("uniform", keep=0.9, at="pixels"),
}
CELLS = (("qwen2.5-vl-3b", 1296), ("qwen3-vl-2b", 1024))
WHOLE = tuple((f"{shape}-whole", side * tokens) for side in (1, 4) for shape, tokens in CELLS)  # for a GPU
SIDE = 64  # groups along a side of a picture of 16,384 patches


class Device(StrEnum):
    """Where it is measured."""

    cpu = "cpu"
    cuda = "cuda"


def bars(shape: str, tokens: int, found: Comparison) -> list[Bar]:
    """What was asked of one model."""
    by = {one.label: one for one in found.outcomes}

    def bar(name: str, label: str, spread: Spread | None, limit: float, at_most: bool) -> Bar:
        if spread is None:
            raise RuntimeError(f"{label} has no ideal.")
        return Bar(name, f"{shape}, {tokens} tokens: {label}", spread.median, spread.low, spread.high, limit, at_most)

    rows = [
        bar("first token over ideal", one, by[one].first_over_ideal, 1.1, True) for one in (BOTH, "pixelprune 0.25")
    ]
    rows.append(bar("first token, times faster than dense", GENTLE, by[GENTLE].first_token, 1.0, False))
    if shape.startswith("qwen2.5-vl-3b"):
        rows.append(bar("first token, times faster than dense", BOTH, by[BOTH].first_token, 3.0, False))
    return rows


def time_waiting(work: Callable[[], Any], device: str) -> float:
    """Milliseconds of one call, until the device is through."""

    def whole() -> None:
        work()
        synchronize(torch.device(device))

    return time_call(whole)


@torch.inference_mode()
def choosing(encoder_ms: float, device: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """What PixelPrune's choice takes on a page of flat ground and noise, as a share of a dense encoder."""
    torch.manual_seed(0)
    page = torch.full((1, SIDE, SIDE, 12 * 16 * 16), 0.9)
    page[:, 20:40, 8:56] = torch.rand(1, 20, 48, 12 * 16 * 16)
    view = View(SIDE**2, 1, ((1, SIDE, SIDE),), {"pixels": page.flatten(1, 2).to(device, dtype)}, total=SIDE**2)
    rows = []
    for name, method in {"tau=0": PixelPrune(), "tau=0.05, anchored": PixelPrune(tau=0.05)}.items():
        spread = Spread.of([time_waiting(lambda own=method: own.select(view), device) for _ in range(6)][1:])
        rows.append({"method": name, "ms": asdict(spread), "share_of_encoder": spread.median / encoder_ms})
    return rows


@torch.inference_mode()
def encoder_ms(device: str, dtype: torch.dtype) -> float:
    """Milliseconds of the dense encoder of Qwen3-VL-2B's proportions on 16,384 patches; on a CPU a quarter as deep."""
    work = workload("qwen3-vl-2b" if device == "cpu" else "qwen3-vl-2b-whole", SIDE**2, 1, device, dtype)
    given = {name: work.inputs[name] for name in ("pixel_values", "image_grid_thw")}
    return min(time_waiting(lambda: work.model.get_image_features(**given), device) for _ in range(2))


def main(
    out: Annotated[Path | None, typer.Option(help="Result file.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds, all sides by turns.")] = 2,
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.cpu,
) -> None:
    """Measure every cell, then what choosing takes, and write the result after each."""
    console = Console(width=160)
    on_gpu = device is Device.cuda
    out = out or RESULTS / ("gpu/encoder.json" if on_gpu else "bench_encoder.json")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    result: dict[str, Any] = {"cells": {}, "dtype": str(dtype)}
    found: list[Bar] = []
    for shape, tokens in WHOLE if on_gpu else CELLS:
        work = workload(shape, tokens, 1, device, dtype)
        measured = compare(work, PLANS, rounds, 0, lambda text: console.print(f"  {text}"))
        console.print(table.costs(measured), table.ratios(measured))
        result["cells"][f"{shape}, {tokens} tokens"] = measured.to_dict() | {"warnings": measured.warnings()}
        found += bars(shape, tokens, measured)
        del work
        write(out, result | {"bars": as_rows(found)})
    dense = encoder_ms(device, dtype)
    rows = choosing(dense, device, dtype)
    result["choosing"] = {"patches": 4 * SIDE**2, "encoder_ms": dense, "rows": rows}
    for row in rows:
        where, share = f"16,384 patches: {row['method']}", row["share_of_encoder"]
        found.append(Bar("choosing over a dense encoder", where, share, 0, 0, 0.02, True))
    write(out, result | {"bars": as_rows(found)})


if __name__ == "__main__":
    typer.run(main)
