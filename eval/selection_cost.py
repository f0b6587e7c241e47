"""What choosing costs beside the prefill that it precedes: `python -m eval.selection_cost`.

For spans of 576, 2,304 and 6,272 tokens, every method's `select` on random signals of a 16-layer, hidden-1024 Llama (16
heads, 32 text tokens after the image), keeping a quarter. Prefill and selections are timed by turns in one process; the
medians are compared. The prefill is that of the kept tokens and the text: what the selection really precedes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import LlamaModel

from eval.results import RESULTS, write
from tokenprune.bench.shapes import configure_llama
from tokenprune.methods.base import Method, View
from tokenprune.methods.registry import all_methods
from tokenprune.signals.table import SIGNALS

GRIDS = {576: (1, 24, 24), 2304: (1, 48, 48), 6272: (32, 14, 14)}
KEEP, TEXT = 0.25, 32
SIZES = {"m": TEXT, "q": 1, "H": 16, "K": 16, "d": 1024, "e": 64, "c": 1024, "v": 64, "p": 64, "t": 32, "g": 1024}


def llama() -> LlamaModel:
    """A random decoder of 16 layers, width 1024."""
    torch.manual_seed(0)
    return LlamaModel(configure_llama(1024, 2752, 16, 16)).eval()


def signals(n: int, names: set[str]) -> dict[str, torch.Tensor]:
    """Random signals of one span."""
    made = torch.Generator().manual_seed(n)
    found = {}
    for name in sorted(names):
        shape = [n if axis == "n" else SIZES[axis] for axis in SIGNALS[name].axes]
        positive = "attention" in name or len(shape) == 1
        found[name] = (torch.rand if positive else torch.randn)(1, *shape, generator=made)
    return found


def time_call(work: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def stages() -> dict[str, Method]:
    """Every image method as it stands at its first stage, at the same budget (videos: `eval.video_cost`)."""
    image = {name: cls for name, cls in all_methods().items() if not ("video" in cls.kind or cls.decodes)}
    return {name: cls(keep=KEEP) for name, cls in image.items()}


@torch.inference_mode()
def measure(n: int, rounds: int, console: Console) -> dict[str, Any]:
    """Medians in milliseconds at n tokens."""
    model, kept = llama(), round(n * KEEP)
    embeds = torch.randn(1, kept + TEXT, 1024)
    views = {}
    for name, method in stages().items():
        views[name] = View(n, 1, (GRIDS[n],), signals(n, {need.signal for need in method.needs}), total=n)
    times: dict[str, list[float]] = {name: [] for name in ["prefill", *views]}
    for turn in range(rounds + 1):
        times["prefill"].append(time_call(lambda: model(inputs_embeds=embeds)))
        for name, method in stages().items():
            times[name].append(time_call(lambda m=method, v=views[name]: m.select(v)))
        console.print(f"n = {n}: round {turn} of {rounds}")
    found = {name: median(values[1:]) for name, values in times.items()}
    prefill = found.pop("prefill")
    return {
        "n": n,
        "prefill_ms": prefill,
        "prefill_spread": [min(times["prefill"][1:]), max(times["prefill"][1:])],
        "selection_ms": found,
    }


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds, after one to warm up.")] = 3,
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS / "selection_cost.json",
    sizes: Annotated[str, typer.Option(help="Span lengths.")] = "576,2304,6272",
) -> None:
    """Measure every size and write the result; sizes that are not asked for stay as the file has them."""
    console = Console()
    asked = [int(n) for n in sizes.split(",")]
    old = json.loads(out.read_text())["sizes"] if out.exists() else []
    kept = [row for row in old if row["n"] not in asked]
    for n in asked:
        kept.append(measure(n, rounds, console))
        result = {"keep": KEEP, "threads": torch.get_num_threads(), "sizes": sorted(kept, key=lambda r: r["n"])}
        write(out, result)


if __name__ == "__main__":
    typer.run(main)
