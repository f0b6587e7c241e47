"""Accuracy against what it costs, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenprune.errors import BadInput
from tokenprune.evaluation.cells import Result
from tokenprune.evaluation.lmms_eval.settings import NONE
from tokenprune.evaluation.tables import main_score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = {"average_tokens": "visual tokens, average over layers", "prefill_ms": "prefill, ms (median)"}


def pareto(results: Sequence[Result]) -> bytes:
    """A PNG: for each task a row, its score against tokens on the left and against measured time on the right.

    The line joins the cells that no other cell beats in both.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise BadInput("Plots need matplotlib. Install it: pip install 'tokenprune[eval]'.") from error
    measured = [r for r in results if r.cost is not None]
    tasks = list(dict.fromkeys(r.cell.task for r in measured))
    if not tasks:
        raise BadInput("No result holds a measured cost: all answers came out of a cache.")
    figure, grid = pyplot.subplots(len(tasks), 2, figsize=(11, 4.2 * len(tasks)), squeeze=False, layout="constrained")
    for task, row in zip(tasks, grid, strict=True):
        rows = [r for r in measured if r.cell.task == task]
        for axes, name in zip(row, AXES, strict=True):
            draw(axes, rows, name)
            axes.set_ylabel(f"{task}: {main_score(rows[0])}")
    methods = dict.fromkeys(r.cell.method for r in measured)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside right upper", title=f"{len(methods)} methods")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    pyplot.close(figure)
    return out.getvalue()


def draw(axes: Axes, results: list[Result], name: str) -> None:
    """One plot: a colour for each method, a point for each cell, the front as a line."""
    from matplotlib import colormaps

    methods = list(dict.fromkeys(r.cell.method for r in results))
    colours = {m: "black" if m == NONE else colormaps["tab20"](i % 20) for i, m in enumerate(methods)}
    for method in methods:
        own = sorted((getattr(r.cost, name), r.scores[main_score(r)]) for r in results if r.cell.method == method)
        marker = "*" if method == NONE else "o"
        axes.plot(*zip(*own, strict=True), marker, color=colours[method], label=method, linestyle=":", linewidth=0.8)
    best = front([(getattr(r.cost, name), r.scores[main_score(r)]) for r in results])
    axes.step(*zip(*best, strict=True), where="post", color="grey", linewidth=1, zorder=0)
    axes.set_xlabel(AXES[name])
    axes.grid(alpha=0.3)


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, score), those with a higher score than everything that costs as much or less."""
    best: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or score > best[-1][1]:
            best.append((cost, score))
    return best
