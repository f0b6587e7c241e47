"""Pictures of the CPU benchmark: `python -m eval.bench.plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib
import typer

from eval.results import RESULTS, read

matplotlib.use("Agg")
from matplotlib import pyplot


def draw(out: Path) -> None:
    """Left: speed-up of the prefill against what its FLOPs promise. Right: pruned over ideal, with choosing and
    without."""
    cells = read("bench_cpu.json")["cells"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 6))
    largest = 1.0
    for number, (name, cell) in enumerate(cells.items()):
        label = name.split(" ", 1)[1]
        outcomes = cell["outcomes"]
        promised = [one["promised"] for one in outcomes]
        speed = [one["speedup"]["median"] for one in outcomes]
        ranges = [[abs(one["speedup"][end] - one["speedup"]["median"]) for one in outcomes] for end in ("low", "high")]
        left.errorbar(promised, speed, ranges, fmt="o", markersize=4, linewidth=0.7, label=label)
        largest = max(largest, *promised)
        behind = [one for one in outcomes if one["over_ideal"] is not None]
        choosing = [one["pruned"]["times"]["selection"]["median"] for one in behind]
        ideal = [one["ideal"]["times"]["prefill"]["median"] for one in behind]
        share = [a / b for a, b in zip(choosing, ideal, strict=True)]
        right.plot(share, [one["over_ideal"]["median"] for one in behind], "o", color=f"C{number}", markersize=4)
        right.plot(share, [one["net_over_ideal"]["median"] for one in behind], "x", color=f"C{number}", markersize=4)
    left.plot([1, largest], [1, largest], color="grey", linewidth=0.8)
    left.set(xlabel="promised by FLOPs of the decoder layers", ylabel="prefill, x faster than dense")
    left.legend()
    right.axhline(1.05, color="grey", linewidth=0.8)
    right.set(
        xlabel="choosing, share of the ideal prefill",
        ylabel="pruned / ideal prefill (x: without choosing)",
        ylim=(0.9, 2.5),
    )
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def main(out: Annotated[Path, typer.Option(help="Picture.")] = RESULTS / "bench_cpu.png") -> None:
    """Draw the committed result."""
    draw(out)


if __name__ == "__main__":
    typer.run(main)
