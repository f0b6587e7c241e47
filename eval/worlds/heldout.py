"""Held-out report of a bundled model: `python -m eval.worlds.heldout scenes`, clips or pages.

Right answers per question type, beside a blind control (what is shown replaced by noise) and the share of the most
frequent answer.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from eval.results import RESULTS, write
from eval.worlds.judge import judge, questions
from eval.worlds.registry import Named
from tokenprune.chat import Chat


def main(
    world: Named,
    model: Annotated[Path | None, typer.Option(help="Folder of the model; default: the bundled one.")] = None,
    count: Annotated[int | None, typer.Option(help="Questions per type; default: the world's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Result file.")] = None,
) -> None:
    """Judge the model with and without its eyes."""
    chat, count = Chat.load(model or world.model), count or world.heldout_count
    out = out or RESULTS / f"{world.name}_heldout.json"
    seeing, blind = judge(world, chat, count), judge(world, chat, count, blind=True)
    types = {}
    for kind in world.types:
        replies = Counter(a.question.answer for a in questions(world, kind, count))
        majority = replies.most_common(1)[0][1] / count
        types[kind] = seeing[kind] | {"blind": blind[kind]["right"], "majority": majority}
    overall = {name: sum(t[name] for t in types.values()) / len(types) for name in ("right", "blind", "majority")}
    write(out, {"questions_per_type": count, "types": types, "all": overall})
    typer.echo(f"all types: {overall['right']:.3f} right, {overall['blind']:.3f} blind; written to {out}")


if __name__ == "__main__":
    typer.run(main)
