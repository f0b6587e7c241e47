"""Results as tables: every cell beside the unpruned model, and published figures beside measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table as RichTable

from tokenprune.errors import BadInput
from tokenprune.evaluation.cells import Cell, Result
from tokenprune.evaluation.grid import Benchmark, Task
from tokenprune.evaluation.lmms_eval.settings import NONE
from tokenprune.evaluation.markdown import table

MISSING = "-"


@dataclass(frozen=True)
class Table:
    """A titled table of text; the first column is a name, the others are figures."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As a Markdown table under its title."""
        title = " ".join(self.title.split())
        return f"**{title}**\n\n{table(self.columns, self.rows)}"

    def rich(self) -> RichTable:
        """For the terminal."""
        shown = RichTable(title=escape(self.title))
        for i, column in enumerate(self.columns):
            shown.add_column(escape(column), justify="right" if i else "left")
        for row in self.rows:
            shown.add_row(*map(escape, row))
        return shown


def main_score(result: Result) -> str:
    """The metric that stands for a task: `score` where it has one, else its first."""
    return "score" if "score" in result.scores else next(iter(result.scores))


def dense_of(result: Result, results: Sequence[Result]) -> Result | None:
    """The unpruned cell of the same model, task, batch and limit, by the same engine."""

    def what(cell: Cell) -> list[Any]:
        same = ("task", "pretrained", "model", "arguments", "batch_size", "limit")
        return [*(getattr(cell, name) for name in same), cell.code.get("engine")]

    dense = (r for r in results if r.cell.method == NONE)
    return next((r for r in dense if what(r.cell) == what(result.cell)), None)


def overview(results: Sequence[Result]) -> list[Table]:
    """A table for each model and task: of every cell the score, visual tokens (mean over layers, and in the last), the
    prefill of a batch, and the cache of a row."""
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        cell = result.cell
        groups.setdefault((cell.task, cell.pretrained, cell.model, cell.batch_size, cell.limit), []).append(result)
    return [_overview(rows) for rows in groups.values()]


def _overview(results: list[Result]) -> Table:
    cell, metric = results[0].cell, main_score(results[0])
    columns = ["", metric, "of dense", "tokens", "last layer", "prefill, ms", "quartiles", "speed-up", "KV, KiB"]
    title = f"{cell.task}: {cell.pretrained}, {results[0].questions} questions, batch {cell.batch_size}"
    labels = [result.cell.label for result in results]
    rows = [_row(result, metric, dense_of(result, results)) for result in results]
    for row, result in zip(rows, results, strict=True):
        if labels.count(row[0]) > 1:  # a recipe that was edited, or another version of the code
            row[0] = f"{row[0]} ({result.cell.key})"
    return Table(title, columns, rows)


def _row(result: Result, metric: str, dense: Result | None) -> list[str]:
    score = result.scores.get(metric)
    row = [result.cell.label, MISSING if score is None else f"{score:.4g}", MISSING]
    if score is not None and dense is not None and dense.scores.get(metric):
        row[2] = f"{100 * score / dense.scores[metric]:.1f} %"
    cost = result.cost
    if cost is None:
        return [*row, *[MISSING] * 6]
    low, high = cost.prefill_range
    ratio = MISSING if dense is None or dense.cost is None else f"{dense.cost.prefill_ms / cost.prefill_ms:.2f} x"
    tokens = [f"{cost.average_tokens:.1f}", f"{cost.kept_tokens:.1f}"]
    times = [f"{cost.prefill_ms:.1f}", f"{low:.1f} to {high:.1f}"]
    return [*row, *tokens, *times, ratio, f"{cost.kv_bytes / 1024:.0f}"]


def against(benchmark: Benchmark, results: Sequence[Result]) -> list[Table]:
    """For each task of a published table: published, here, difference."""
    tables = []
    wanted = {(cell.task, cell.label): cell for cell in benchmark.cells()}
    for name, task in benchmark.tasks.items():
        rows = []
        for setting in benchmark.settings:
            published = setting.published.get(name)
            result = _found(wanted[task.task, setting.label], results)
            here = None if result is None else figure(task, result)
            difference = None if published is None or here is None else round(here - published, 1) + 0.0
            texts = [MISSING if value is None else f"{value:.1f}" for value in (published, here)]
            rows.append([setting.label, *texts, MISSING if difference is None else f"{difference:+.1f}"])
        metrics = " + ".join(task.metrics)
        tables.append(Table(f"{name} ({task.task}: {metrics})", ["", "published", "here", "difference"], rows))
    return tables


def _found(cell: Cell, results: Sequence[Result]) -> Result | None:
    """The result of a cell of a published table, whatever it is called, and however many questions were asked; that of
    the code as it is now, where there are several."""
    what = {"label", "limit", "batch_size", "plan", "code"}
    same = [
        r
        for r in results
        if r.cell.model_dump(exclude=what) == cell.model_dump(exclude=what) and r.cell.plan in ({}, cell.plan)
    ]
    return min(same, key=lambda r: r.cell.code != cell.code, default=None)


def figure(task: Task, result: Result) -> float:
    """The figure that papers print."""
    missing = [metric for metric in task.metrics if metric not in result.scores]
    if missing:
        known = ", ".join(result.scores)
        raise BadInput(f"{result.cell.task} reported no {missing[0]}, but {known}. Correct the benchmark file.")
    return task.scale * sum(result.scores[metric] for metric in task.metrics)
