"""Two published claims put to the test on the bundled model: `python -m eval.worlds.scenes.claims`.

FEATHER (arXiv 2412.13180): at equal FLOPs it beats FastV on grounding. FEATHER runs as published; FastV stands before
layer 1 or 2 of this model's eight (3 of 32 is the published place) with the budget whose FLOPs come nearest.
GAP (arXiv 2506.21873): original position ids save grounding. Both policies, for methods before the LLM, one question
type at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from eval.results import RESULTS, write
from eval.worlds.judge import judge
from eval.worlds.scenes.world import SCENES
from tokenprune import FEATHER, FastV, Stage, prune, scenes
from tokenprune.chat import Chat

GROUNDING = ("position", "relation")
OTHERS = ("colour", "shape", "digit", "count", "existence")
POLICIES = ("original", "compact")
SELECTORS = ("random", "uniform", "divprune", "fopru", "fastervlm")
KEEPS = (0.5, 0.25, 0.1)


def judge_stages(chat: Chat, stages: list[Stage], types: tuple[str, ...], count: int, positions: str) -> dict[str, Any]:
    """Right answers per type, and what the last prompts cost."""
    with prune(chat.model, stages, positions=positions) as run:
        scores = judge(SCENES, chat, count, types=types, note=f"{stages[0].method.name} {positions}")
        report = run.report()
    found = {kind: {k: v for k, v in scores[kind].items() if k in ("right", "mean_box_iou")} for kind in types}
    return {"types": found, "flops": report.flops / report.dense_flops}


def nearest_fastv(chat: Chat, at: int, flops: float) -> int:
    """Tokens that FastV before layer `at` may keep to cost as much."""
    low, high = 1, SCENES.tokens
    while low < high:
        middle = (low + high) // 2
        cost = judge_stages(chat, [Stage(at, FastV(keep=middle))], ("position",), 1, "original")["flops"]
        low, high = (middle + 1, high) if cost < flops else (low, middle)
    return low


def main(
    model: Annotated[Path, typer.Option(help="Folder of the model.")] = scenes.MODEL,
    count: Annotated[int, typer.Option(help="Questions per type.")] = 200,
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS / "scenes_claims.json",
) -> None:
    """Run both tests and write what came out."""
    chat, console = Chat.load(model), Console()
    layers = len(chat.model.base_model.language_model.layers)
    stages = [Stage(at, m) for at, m in FEATHER(budget_of="published").schedule(layers)]
    feather = judge_stages(chat, stages, GROUNDING, count, "original")
    alone = judge_stages(chat, stages, ("position",), 1, "original")["flops"]
    rows = [{"name": "feather", "at": [s.at for s in stages]} | feather]
    for at in (1, 2):
        keep = nearest_fastv(chat, at, alone)
        fastv = judge_stages(chat, [Stage(at, FastV(keep=keep))], GROUNDING, count, "original")
        rows.append({"name": "fastv", "at": [at], "keep": keep} | fastv)
        console.print(rows[-1])
    dense = judge(SCENES, chat, count, types=GROUNDING + OTHERS)
    gap = []
    for method in SELECTORS:
        for keep in KEEPS:
            for positions in POLICIES:
                with prune(chat.model, method, keep=keep, positions=positions):
                    scores = judge(SCENES, chat, count, types=GROUNDING + OTHERS, note=f"{method} {keep} {positions}")
                right = {kind: scores[kind]["right"] for kind in scores}
                gap.append({"method": method, "keep": keep, "positions": positions, "types": right})
                console.print(gap[-1])
    result = {
        "questions_per_type": count,
        "dense": {kind: dense[kind]["right"] for kind in dense},
        "feather_against_fastv": rows,
        "gap": gap,
    }
    write(out, result)


if __name__ == "__main__":
    typer.run(main)
