"""Accuracy against cost for every method on a bundled model: `python -m eval.worlds.pareto scenes`, clips or pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib
import typer

from eval.results import RESULTS, read
from eval.worlds.compare import average
from eval.worlds.registry import Named

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PLAIN = ("random", "uniform", "downsample", "resized image")


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other beats in both cost and accuracy, by cost."""
    best, kept = -1.0, []
    for cost, right in sorted(points, key=lambda p: (p[0], -p[1])):
        if right > best:
            best = right
            kept.append((cost, right))
    return kept


def main(
    world: Named,
    out: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
) -> None:
    """Draw one line per method over its budgets; baselines in grey, the best known points joined in black."""
    data = read(f"{world.name}_methods.json")
    cost = "flops_both_sides" if world.both_sides else "flops"
    lines: dict[str, list[dict]] = {}
    for cell in average(data["cells"]):
        if cell.get("positions", "original") == "original" or cell["label"] in world.baselines:
            lines.setdefault(cell["label"], []).append(cell)
    colours = plt.get_cmap("tab20").colors
    figure, axes = plt.subplots(figsize=(11, 7), layout="constrained")
    for number, (label, cells) in enumerate(sorted(lines.items())):
        cells.sort(key=lambda c: (c[cost], c["keep"]))
        plain = label in PLAIN
        axes.plot(
            [100 * c[cost] for c in cells],
            [100 * c["all"] for c in cells],
            color="0.6" if plain else colours[number % 20],
            linestyle="--" if plain else "-",
            marker="osv^D"[number // 20 + 2 * plain],
            markersize=4,
            linewidth=1,
            label=label,
        )
    points = [(100 * c[cost], 100 * c["all"]) for cells in lines.values() for c in cells]
    axes.plot(*zip(*frontier(points), strict=True), color="black", linewidth=2.5, alpha=0.4, label="best known")
    dense = data["dense"]
    axes.axhline(100 * sum(dense.values()) / len(dense), color="black", linewidth=0.8, linestyle=":", label="dense")
    work = "vision encoder and language model" if world.both_sides else "the language model"
    axes.set_xlabel(f"prefill FLOPs of {work}, % of dense")
    axes.set_ylabel("right answers, % (mean over question types)")
    axes.set_title(world.title)
    axes.legend(fontsize=7, ncol=2, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.grid(alpha=0.3)
    figure.savefig(out or RESULTS / f"{world.name}_pareto.png", dpi=110)


if __name__ == "__main__":
    typer.run(main)
