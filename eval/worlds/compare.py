"""Every method at every budget on a bundled model: `python -m eval.worlds.compare scenes`, clips or pages.

One cell = one method, one budget and, on scenes, one position policy, judged on the same held-out questions. Finished
cells are kept, so a stopped run goes on where it was. The random baseline is averaged over seeds. A method of several
stages runs by its name, with `keep` as it defines it; what was left is in the columns of tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from eval.results import RESULTS, write
from eval.worlds.cell import Cells, label
from eval.worlds.judge import judge, sum_scores
from eval.worlds.registry import Named
from tokenprune.chat import Chat


def average(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each method, budget and position policy; seeds of the random baseline averaged."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for one in cells:
        groups.setdefault((label(one), one["keep"], one.get("positions")), []).append(one)
    merged = []
    for (name, *_), own in groups.items():
        types = {kind: sum(c["types"][kind] for c in own) / len(own) for kind in own[0]["types"]}
        merged.append(own[0] | {"label": name, "types": types, "all": sum(c["all"] for c in own) / len(own)})
    return merged


def main(
    world: Named,
    model: Annotated[Path | None, typer.Option(help="Folder of the model; default: the bundled one.")] = None,
    count: Annotated[int | None, typer.Option(help="Questions per type; default: the world's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Result file.")] = None,
) -> None:
    """Judge every cell that the result file does not hold yet."""
    chat, console, count = Chat.load(model or world.model), Console(), count or world.compare_count
    out = out or RESULTS / f"{world.name}_methods.json"
    result: dict[str, Any] = {"questions_per_type": count, "cells": []}
    if out.exists():
        old = json.loads(out.read_text())
        if old["questions_per_type"] == count:
            result["cells"] = old["cells"]
    result["dense"] = sum_scores(judge(world, chat, count))["types"]
    cells = Cells(world, chat, count)
    for setting in world.cells():
        if any(setting.items() <= one.items() for one in result["cells"]):
            continue
        found = cells.judge(setting)
        result["cells"].append(setting | found)
        write(out, result)
        console.print(f"{setting} {found['all']:.3f}")


if __name__ == "__main__":
    typer.run(main)
