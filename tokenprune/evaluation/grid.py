"""Which cells to run: methods x budgets x tasks, or a benchmark file with the published figures beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tokenprune.errors import unknown
from tokenprune.evaluation.cells import Cell
from tokenprune.evaluation.lmms_eval.settings import NONE, plan_of
from tokenprune.methods.registry import all_classes
from tokenprune.recipes.shelf import Shelf

HARNESS = "tokenprune"
SHELF = Shelf("benchmark", "source, pretrained, tasks and settings", "They are in configs/benchmarks.", "benchmarks")


class Task(BaseModel):
    """A task of lmms-eval and the figure of it that papers print: the sum of `metrics` times `scale`."""

    model_config = ConfigDict(extra="forbid")

    task: str
    metrics: list[str] = Field(min_length=1)
    scale: float = Field(default=1.0, strict=True)


class Setting(BaseModel):
    """One row: a pruning and its published figures by task."""

    model_config = ConfigDict(extra="forbid")

    label: str
    method: str
    options: dict[str, Any] = {}
    published: dict[str, float] = {}


class Benchmark(BaseModel):
    """A published table: the model, its tasks, and rows of settings."""

    model_config = ConfigDict(extra="forbid")

    source: str
    pretrained: str
    model: str = HARNESS
    arguments: dict[str, Any] = {}
    batch_size: int = Field(default=1, ge=1, strict=True)
    tasks: dict[str, Task] = Field(min_length=1)
    settings: list[Setting] = Field(min_length=1)

    def cells(self, limit: int | None = None) -> list[Cell]:
        """Every row on every task of the table, the unpruned rows first."""
        rows = sorted(self.settings, key=lambda row: row.method != NONE)
        return [
            Cell.of(
                row.method,
                row.options,
                label=row.label,
                task=task.task,
                pretrained=self.pretrained,
                model=self.model,
                arguments=self.arguments,
                batch_size=self.batch_size,
                limit=limit,
            )
            for task in self.tasks.values()
            for row in rows
        ]


def grid(
    pretrained: str,
    tasks: list[str],
    methods: list[str],
    keeps: list[float | int],
    *,
    positions: str | None = None,
    model: str = HARNESS,
    arguments: dict[str, Any] | None = None,
    batch_size: int = 1,
    limit: int | None = None,
) -> list[Cell]:
    """Every method at every budget on every task, and the unpruned model. Recipes have a budget of their own."""
    prunings: dict[str, tuple[str, dict[str, Any]]] = {NONE: (NONE, {})}
    where = {} if positions is None else {"positions": positions}
    for method in dict.fromkeys(methods):
        if method == NONE:
            continue
        if method in all_classes():
            prunings |= {f"{method} {keep}": (method, {"keep": keep} | where) for keep in keeps}
        else:
            prunings[method] = (method, where)
    shared = dict(pretrained=pretrained, model=model, arguments=arguments or {}, batch_size=batch_size, limit=limit)
    return [
        Cell.of(method, options, label=label, task=task, **shared)
        for task in dict.fromkeys(tasks)
        for label, (method, options) in prunings.items()
    ]


def benchmark_names() -> list[str]:
    """Names of all benchmark files that come with the package."""
    return SHELF.names()


def load_benchmark(name: str | Path) -> Benchmark:
    """A benchmark by its name or its file, checked to the last option of its methods."""
    return SHELF.load(name, _check)


def _check(data: dict[str, Any], title: str) -> Benchmark:
    found = Benchmark.model_validate(data)
    for row in found.settings:
        plan_of(row.method, row.options)
        for task in row.published:
            if task not in found.tasks:
                raise unknown("task", task, found.tasks)
    return found
