"""One cell of a comparison, its result, and the file that it is kept in."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tokenprune.bench import record
from tokenprune.errors import BadInput
from tokenprune.evaluation.lmms_eval.code import code_of
from tokenprune.evaluation.lmms_eval.settings import plan_of


class Cell(BaseModel):
    """What is run: a model with a pruning, on a task. Two cells that are equal here would give the same answers.

    model: the name in lmms-eval; arguments: of that model. method: `none` is unpruned; options: of `tokenprune.prune`.
    limit: only the first questions of the task; None for all. plan, code: what method and options say, and the versions
    of what does it (`Plan.describe`, `code_of`); empty in results that are older than the two.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    task: str
    pretrained: str
    method: str
    options: dict[str, Any] = {}
    model: str = "tokenprune"
    arguments: dict[str, Any] = {}
    batch_size: int = 1
    limit: int | None = None
    plan: dict[str, Any] = {}
    code: dict[str, str] = {}

    @classmethod
    def of(cls, method: str, options: dict[str, Any], **others: Any) -> Cell:
        """The cell of a pruning as it is now: files are read. Raises `BadInput` for a wrong one."""
        plan = plan_of(method, options)
        return cls(method=method, options=options, plan=plan.describe(), code=code_of(plan.methods), **others)

    @property
    def key(self) -> str:
        """Tells different cells apart. The label is not in it."""
        return hashlib.sha256(self.model_dump_json(exclude={"label"}).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """A file name: readable, and different for different cells."""
        options = " ".join(f"{name}={value}" for name, value in self.options.items())
        words = re.sub(r"[^A-Za-z0-9.=-]+", "_", f"{self.task} {self.method} {options}").strip("_")
        return f"{words[:80]}_{self.key}"


class Cost(BaseModel):
    """Means over the samples that were measured (answers out of a cache are not); prefill_ms is the median of the
    batches', prefill_range their quartiles, kv_bytes the mean of a row."""

    measured: int
    visual_tokens: float
    kept_tokens: float
    average_tokens: float
    prefill_ms: float
    prefill_range: tuple[float, float]
    kv_bytes: float


class Result(BaseModel):
    """What came of a cell. scores: every metric that the task reports; seconds: of the whole cell, questions read and
    judged; versions: where it ran."""

    model_config = ConfigDict(extra="forbid")

    cell: Cell
    scores: dict[str, float]
    questions: int
    cost: Cost | None
    seconds: float
    versions: dict[str, Any] = {}


def write(folder: Path, result: Result) -> None:
    """Keep a result as `folder`/<name>.json, with versions and device."""
    record.write(folder / f"{result.cell.name}.json", result.model_dump(mode="json", exclude={"versions"}))


def read(path: Path) -> Result:
    """A kept result; raises `BadInput` where the file holds something else."""
    try:
        return Result.model_validate_json(path.read_text())
    except (OSError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise BadInput(
            f"{path} is no result of `tokenprune eval` ({first}). Delete it, or name another folder."
        ) from error


def read_all(folder: Path) -> list[Result]:
    """Every result of a folder, by task and label."""
    if not folder.is_dir():
        raise BadInput(f"There is no folder {folder}. Give the --out of `tokenprune eval`.")
    found = [read(path) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise BadInput(f"{folder} holds no results. Give the --out of `tokenprune eval`.")
    return sorted(found, key=lambda r: (r.cell.task, r.cell.method != "none", r.cell.label))


def write_samples(folder: Path, cell: Cell, samples: list[dict[str, Any]]) -> None:
    """Keep what was answered to each question as `folder`/samples/<name>.jsonl."""
    path = folder / "samples" / f"{cell.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
