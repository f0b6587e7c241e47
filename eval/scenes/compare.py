"""Every image method at every budget on the bundled model: `python -m eval.scenes.compare`.

One cell = one method, one budget, one position policy, judged on the same held-out questions. Finished cells are kept,
so a stopped run goes on where it was. The random baseline is averaged over three seeds. A method of several stages runs
by its name, with `keep` as it defines it; what was left is in the columns of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from eval.results import RESULTS, write
from eval.scenes.judge import any_size, judge
from eval.scenes.questions import TYPES
from tokenprune import prune, scenes
from tokenprune.chat import Chat
from tokenprune.methods.registry import all_methods

KEEPS = (0.5, 0.25, 0.1, 0.05)
POSITIONS = ("original", "compact")
RESIZED = "resized image"  # the baseline that needs no method: the picture itself made smaller
DEEPER = {"at": 4}  # half of this model's layers, where it has found what it looks for
VARIANTS: dict[str, list[dict[str, Any]]] = {
    **{method: [{}, DEEPER] for method in ("fastv", "dart", "efficientvla", "coarse_to_fine")},
    "fopru": [{"strategy": "rank"}, {"strategy": "row"}],
    "random": [{"seed": 0}, {"seed": 1}, {"seed": 2}],
    "sparsevlm": [{}, {"version": "2"}],
    "todre": [{"objective": "maxmin"}, {"objective": "maxsum"}],
    "prumerge": [{}, {"plus": True}],
    RESIZED: [{}],
}


def cell(chat: Chat, method: str, options: dict[str, Any], keep: float, positions: str, count: int) -> dict[str, Any]:
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


def resized(chat: Chat, keep: float, count: int) -> dict[str, Any]:
    """The same for pictures of the largest square of patches that the budget allows."""
    side = int((144 * keep) ** 0.5)
    with any_size(chat):
        scores = judge(chat, count, note=f"{RESIZED} {keep}", side=side)
    with prune(chat.model, "uniform", keep=side * side) as run:  # a prompt of the same length
        judge(chat, count, types=TYPES[-1:])
        report = run.report()
    return {
        "types": {kind: scores[kind]["right"] for kind in TYPES},
        "all": sum(scores[kind]["right"] for kind in TYPES) / len(TYPES),
        "average_tokens": side * side,
        "final_tokens": side * side,
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
    for name in cells():
        if json.dumps(list(name.values())) in done:
            continue
        is_resized = name["method"] == RESIZED
        found = resized(chat, name["keep"], count) if is_resized else cell(chat, *name.values(), count)
        result["cells"].append(name | found)
        write(out, result)
        console.print(f"{name} {found['all']:.3f}")


def cells() -> Iterator[dict[str, Any]]:
    """Every setting to judge, those with original positions first."""
    for positions in POSITIONS:
        own = [name for name, cls in all_methods().items() if not ("video" in cls.kind or cls.decodes)]
        for method in [*own, RESIZED]:
            if method == RESIZED and positions != POSITIONS[-1]:
                continue  # a smaller picture has positions of its own
            for options in VARIANTS.get(method, [{}]):
                for keep in KEEPS:
                    yield {"method": method, "options": options, "keep": keep, "positions": positions}


if __name__ == "__main__":
    typer.run(main)
