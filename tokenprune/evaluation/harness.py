"""Runs cells through lmms-eval, in this process, so that a model is loaded once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

import torch
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model, list_available_models
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import load_yaml_config

from tokenprune import scenes
from tokenprune.errors import BadInput, unknown
from tokenprune.evaluation import cells
from tokenprune.evaluation.cells import Cell, Cost, Result
from tokenprune.evaluation.grid import HARNESS
from tokenprune.evaluation.needs import naming

MEASURED = ("visual_tokens", "kept_tokens", "average_tokens", "prefill_ms", "kv_bytes")


def run_all(
    wanted: Sequence[Cell],
    folder: Path,
    include: Sequence[Path] = (),
    device: str | None = None,
    told: Callable[[int, Cell], None] = lambda done, cell: None,
) -> None:
    """Run every cell whose result `folder` does not hold yet; each is kept as soon as it is there.

    Under torchrun every rank calls this; rank 0 writes. told: hears how many are done, and which cell comes next.
    """
    # Every rank decides before any writes, so that all run the same.
    missing = [cell for cell in wanted if not (folder / f"{cell.name}.json").exists()]
    for cell in wanted:
        if cell not in missing:
            cells.read(folder / f"{cell.name}.json")
    if not missing:
        return
    models = [name for name in list_available_models(include_aliases=True) if name.partition("_")[0] == HARNESS]
    for name in dict.fromkeys(cell.model for cell in missing):
        if name not in models:
            raise unknown("model of lmms-eval that tokenprune prunes", name, models)
        with naming(f"its model {name}"):
            get_model(name)
    tasks = task_manager([cell.task for cell in missing], include)
    for done, cell in enumerate(missing, len(wanted) - len(missing)):
        told(done, cell)
        evaluate(cell, folder, tasks, device)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()


def task_manager(names: Sequence[str], include: Sequence[Path]) -> TaskManager:
    """lmms-eval's index of tasks; its own thousand are read only where `include` does not hold what is asked for."""
    for path in include:
        if not path.is_dir():
            raise BadInput(f"There is no folder {path} of tasks.")
    paths = [str(path) for path in include]
    for defaults in (False, True):
        found = TaskManager("ERROR", include_path=paths, include_defaults=defaults)
        strange = [name for name in names if name not in found.all_tasks]
        if not strange:
            import_functions(found, names)
            return found
    raise unknown("task", strange[0], found.all_tasks)


def import_functions(tasks: TaskManager, names: Sequence[str]) -> None:
    """Import what the files of these tasks, and of the tasks of these groups and tags, name; lmms-eval does it after a
    model is loaded."""
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in tasks.task_index:  # a task that a group defines itself
            continue
        seen.add(name)
        entry, config = tasks.task_index[name], {}
        if entry["yaml_path"] != -1:
            with naming(f"the task {name}"):
                config = load_yaml_config(entry["yaml_path"], mode="full")
        parts = config.get("task") if entry.get("task", -1) == -1 else entry["task"]
        waiting += [part for part in parts if isinstance(part, str)] if isinstance(parts, list) else []


def evaluate(cell: Cell, folder: Path, tasks: TaskManager, device: str | None) -> None:
    """Run one cell and keep what came of it."""
    began = time.perf_counter()
    given = {"batch_size": cell.batch_size, "max_batch_size": None, "device": device}
    model = get_model(cell.model).create_from_arg_string(arguments(cell), given)
    if model.plan.describe() != cell.plan:
        raise BadInput(f"{cell.method} was edited after the grid had begun. Start the command again.")
    found = simple_evaluate(
        model=model,
        tasks=[cell.task],
        batch_size=cell.batch_size,
        device=device,
        limit=cell.limit,
        task_manager=tasks,
        verbosity="ERROR",
        distributed_executor_backend="torchrun" if torch.distributed.is_initialized() else "accelerate",
        bootstrap_iters=0,
    )
    if int(os.environ.get("RANK", 0)):
        return
    samples = [sample(one) for rows in found["samples"].values() for one in rows]
    result = Result(
        cell=cell,
        scores=scores(found["results"], cell.task),
        questions=len(samples),
        cost=cost(samples),
        seconds=time.perf_counter() - began,
    )
    cells.write_samples(folder, cell, samples)
    cells.write(folder, result)


def arguments(cell: Cell) -> str:
    """Everything that tells this cell's answers from another's, as lmms-eval's --model_args."""
    given = (
        {"pretrained": scenes.NAMED.get(cell.pretrained, cell.pretrained)}
        | cell.arguments
        | {"method": cell.method}
        | cell.options
    )
    for name, value in given.items():
        if isinstance(value, (list, tuple, dict)) or "," in str(value):
            raise BadInput(f"{name}={value!r} cannot be handed to lmms-eval. Put it into a recipe file.")
    return ",".join(f"{name}={value}" for name, value in given.items() if value is not None)


def scores(results: dict[str, dict[str, Any]], task: str) -> dict[str, float]:
    """Every number that the task (or its group) reports, by metric; its error is not one."""
    found: dict[str, float] = {}
    for key, value in results.get(task, {}).items():
        metric = key.partition(",")[0]
        if "_stderr" not in metric and isinstance(value, (int, float)):
            found.setdefault(metric, float(value))
    if not found:
        raise BadInput(f"The task {task!r} reports no number; it may want a judge or a submission.")
    return found


def sample(logged: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one question: where it is, what was answered, what it cost."""
    counts = (logged.get("token_counts") or [None])[0] or {}
    answer = logged["filtered_resps"]
    while isinstance(answer, (list, tuple)) and answer:
        answer = answer[0]
    return {"doc_id": logged["doc_id"], "target": str(logged["target"]), "answer": str(answer)} | counts


def cost(samples: Sequence[dict[str, Any]]) -> Cost | None:
    """What the measured samples cost; None where no answer was measured."""
    measured = [{name: one[name] for name in MEASURED} for one in samples if "prefill_ms" in one]
    if not measured:
        return None
    times = [one["prefill_ms"] for one in measured]
    quarter = quantiles(times, n=4) if len(times) > 1 else times * 3
    means = {name: mean(one[name] for one in measured) for name in MEASURED if name != "prefill_ms"}
    return Cost(measured=len(measured), prefill_ms=median(times), prefill_range=(quarter[0], quarter[2]), **means)
