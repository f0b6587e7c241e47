"""Held-out report of the bundled video model: `python -m eval.clips.heldout`.

Right answers per question type beside a blind control (the clip replaced by noise) and the share of the most frequent
answer.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from eval.clips.judge import judge, questions
from eval.clips.questions import TYPES
from eval.results import RESULTS, write
from tokenprune import scenes
from tokenprune.chat import Chat


def main(
    model: Annotated[Path, typer.Option(help="Folder of the model.")] = scenes.VIDEO_MODEL,
    count: Annotated[int, typer.Option(help="Questions per type.")] = 150,
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS / "clips_heldout.json",
) -> None:
    """Judge the model with and without its eyes."""
    chat = Chat.load(model)
    seeing, blind = judge(chat, count), judge(chat, count, blind=True)
    types = {}
    for kind in TYPES:
        replies = Counter(a.question.answer for a in questions(kind, count))
        majority = replies.most_common(1)[0][1] / count
        types[kind] = {"right": seeing[kind], "blind": blind[kind], "majority": majority}
    overall = {name: sum(t[name] for t in types.values()) / len(types) for name in ("right", "blind", "majority")}
    write(out, {"questions_per_type": count, "types": types, "all": overall})
    typer.echo(f"all types: {overall['right']:.3f} right, {overall['blind']:.3f} blind; written to {out}")


if __name__ == "__main__":
    typer.run(main)
