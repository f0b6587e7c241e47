"""`tokenprune eval`: methods x budgets x tasks through lmms-eval."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from tokenprune.cli.parse import parse_value
from tokenprune.errors import BadInput

out = Console()


def evaluate(
    benchmark: Annotated[
        str | None, typer.Option(help="A published table, by name or YAML file, instead of the options below.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id; scenes, scenes-video, pages: the bundled ones.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Tasks of lmms-eval, with commas between them.")] = None,
    methods: Annotated[str, typer.Option(help="Methods and recipes; the unpruned model always runs too.")] = "divprune",
    keep: Annotated[str, typer.Option(help="Budgets for every method, with commas between them.")] = "0.5,0.25,0.1",
    positions: Annotated[str | None, typer.Option(help="original or compact ids. (default: original)")] = None,
    through: Annotated[
        str, typer.Option(help="lmms-eval's model: tokenprune, or tokenprune_<id> for their prompts.")
    ] = "tokenprune",
    model_args: Annotated[str, typer.Option(help="Further arguments of that model, as name=value,...")] = "",
    include_path: Annotated[list[Path] | None, typer.Option(help="Folder with more tasks.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions side by side.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions of each task.")] = None,
    device: Annotated[str | None, typer.Option(help="(default: a GPU where there is one)")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder of the results, one file for each cell.")] = Path(
        "runs/eval"
    ),
) -> None:
    """Run every method at every budget on every task, beside the unpruned model in the same harness and batch.

    A cell whose result is there is not run again: start the same command anew to go on after a stop. Several GPUs:
    torchrun --nproc-per-node N -m tokenprune.cli eval ...
    """
    if (benchmark is None) == (tasks is None) or (benchmark is None) == (model is None):
        raise BadInput("Give --benchmark NAME, or --model MODEL and --tasks NAMES.")
    from tokenprune.evaluation.needs import check_packages

    check_packages()
    from tokenprune.evaluation.cells import read_all
    from tokenprune.evaluation.grid import grid, load_benchmark
    from tokenprune.evaluation.harness import run_all
    from tokenprune.evaluation.tables import against, overview

    table = None if benchmark is None else load_benchmark(benchmark)
    if table is not None:
        cells = table.cells(limit)
    else:
        assert model is not None, "without a benchmark there is a model"
        assert tasks is not None, "without a benchmark there are tasks"
        cells = grid(
            model,
            _words(tasks),
            _words(methods),
            [budget(word) for word in _words(keep)],
            positions=positions,
            model=through,
            arguments=_pairs(model_args),
            batch_size=batch,
            limit=limit,
        )

    first = int(os.environ.get("RANK", 0)) == 0

    def tell(done: int, cell: Any) -> None:
        if first:
            out.print(
                f"[bold]{done + 1}/{len(cells)}[/bold] {escape(cell.task)}: {escape(cell.label)}", highlight=False
            )

    run_all(cells, folder, include_path or [], device, tell)
    if first:
        names = {cell.name for cell in cells}
        found = [result for result in read_all(folder) if result.cell.name in names]
        for shown in against(table, found) if table is not None else overview(found):
            out.print(shown.rich())
        out.print(f"results in {escape(str(folder))}; `tokenprune results {escape(str(folder))}` draws them")


def budget(word: str) -> int | float:
    """A keep as people write it."""
    value = parse_value(word)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadInput(f"--keep {word}: give numbers, such as 0.25 or 64, with commas between them.")
    return value


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _pairs(text: str) -> dict[str, Any]:
    pairs = [word.partition("=") for word in _words(text)]
    wrong = [name for name, equals, _ in pairs if not equals]
    if wrong:
        raise BadInput(f"--model-args {wrong[0]}: write name=value, with commas between them.")
    return {name: parse_value(value) for name, _, value in pairs}
