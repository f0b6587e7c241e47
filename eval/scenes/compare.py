"""Every method at every budget on the bundled model: `python -m eval.scenes.compare`.

One cell = one method, one budget, one position policy, judged on the same held-out questions. Finished cells are kept,
so a stopped run goes on where it was. The random baseline is averaged over three seeds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from eval.results import RESULTS, write
from eval.scenes.judge import judge
from eval.scenes.questions import TYPES
from tokenprune import prune, scenes
from tokenprune.chat import Chat
from tokenprune.methods.registry import all_methods

KEEPS = (0.5, 0.25, 0.1, 0.05)
POSITIONS = ("original", "compact")
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "fastv": [{}, {"at": 4}],  # the paper's layer, and where this shallower model has found what it looks for
    "fopru": [{"strategy": "rank"}, {"strategy": "row"}],
    "random": [{"seed": 0}, {"seed": 1}, {"seed": 2}],
}


def cell(chat: Chat, method: str, keep: float, positions: str, options: dict[str, Any], count: int) -> dict[str, Any]:
    """Judge one setting and read what the last prompt cost off its report."""
    with prune(chat.model, method, keep=keep, positions=positions, **options) as run:
        scores = judge(chat, count, note=f"{method} {options or ''} {keep} {positions}")
        report = run.report()
    return {
        "types": {kind: scores[kind]["right"] for kind in TYPES},
        "all": sum(scores[kind]["right"] for kind in TYPES) / len(TYPES),
        "average_tokens": report.average_tokens * 144 / report.tokens,
        "final_tokens": report.final_tokens * 144 / report.tokens,
        "flops": report.flops / report.dense_flops,
    }


def main(
    model: Annotated[Path, typer.Option(help="Folder of the model.")] = scenes.MODEL,
    count: Annotated[int, typer.Option(help="Questions per type.")] = 60,
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS / "scenes_methods.json",
) -> None:
    """Judge every cell that the result file does not hold yet."""
    chat, console = Chat.load(model), Console()
    result: dict[str, Any] = {"questions_per_type": count, "cells": []}
    if out.exists():
        old = json.loads(out.read_text())
        if old["questions_per_type"] == count:
            result["cells"] = old["cells"]
    dense = judge(chat, count)
    result["dense"] = {kind: dense[kind]["right"] for kind in TYPES}
    done = {json.dumps([c["method"], c["options"], c["keep"], c["positions"]]) for c in result["cells"]}
    for method in all_methods():
        for options in VARIANTS.get(method, [{}]):
            for keep in KEEPS:
                for positions in POSITIONS:
                    if json.dumps([method, options, keep, positions]) in done:
                        continue
                    found = cell(chat, method, keep, positions, options, count)
                    name = {"method": method, "options": options, "keep": keep, "positions": positions}
                    result["cells"].append(name | found)
                    write(out, result)
                    console.print(f"{method} {options or ''} keep {keep} {positions}: {found['all']:.3f}")


if __name__ == "__main__":
    typer.run(main)
