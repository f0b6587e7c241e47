"""Every video method at every budget on the bundled video model, table and plot: `python -m eval.clips.compare`.

One cell = one method at one budget, judged on the same held-out questions. Finished cells are kept, so a stopped run
goes on where it was. A method of several stages runs by its name, with `keep` as it defines it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import typer
from rich.console import Console

from eval.clips.judge import judge
from eval.clips.questions import TYPES
from eval.results import RESULTS, write
from tokenprune import prune, scenes
from tokenprune.chat import Chat
from tokenprune.methods.registry import all_methods

matplotlib.use("Agg")
from matplotlib import pyplot as plt

KEEPS = (0.5, 0.25, 0.1)
BESIDE = ("random", "uniform", "downsample", "divprune", "todre", "fastv")  # what they are held against
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "fastvid": [{"variant": "onevision"}, {"variant": "qwen"}],
    "quota": [{"score": "text"}],
    "random": [{"seed": 0}, {"seed": 1}],
    "todre": [{"source": "received"}],  # the model's encoder has no CLS token
}


def cells() -> Iterator[dict[str, Any]]:
    """Every setting to judge. `streamvln` needs the geometry of the scene, which these clips do not have."""
    names = [n for n, cls in all_methods().items() if "video" in cls.kind and n != "streamvln"]
    for keep in KEEPS:
        for method in [*BESIDE, *names]:
            for options in VARIANTS.get(method, [{}]):
                yield {"method": method, "options": options, "keep": keep}


def cell(chat: Chat, method: str, options: dict[str, Any], keep: float, count: int) -> dict[str, Any]:
    """Judge one setting and read what the last prompt cost off its report."""
    with prune(chat.model, method, keep=keep, **options) as run:
        scores = judge(chat, count, note=f"{method} {options or ''} {keep}")
        report = run.report()
    looked = report.decoding.looked_at / report.decoding.visual if report.decoding else None
    return {
        "types": scores,
        "all": sum(scores.values()) / len(scores),
        "average_tokens": report.average_tokens * 256 / report.tokens,
        "final_tokens": report.final_tokens * 256 / report.tokens,
        "flops": report.flops / report.dense_flops,
        "looked_at": looked,
    }


def label(cell: dict[str, Any]) -> str:
    """A cell's method with its options, seeds left out."""
    return " ".join([cell["method"], *(f"{k}={v}" for k, v in cell["options"].items() if k != "seed")])


def averaged(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each method and budget; seeds of the random baseline averaged."""
    groups: dict[tuple, list[dict]] = {}
    for one in found:
        groups.setdefault((label(one), one["keep"]), []).append(one)
    merged = []
    for (name, keep), own in groups.items():
        types = {kind: sum(c["types"][kind] for c in own) / len(own) for kind in TYPES}
        merged.append(own[0] | {"label": name, "keep": keep, "types": types, "all": sum(types.values()) / len(types)})
    return merged


def draw(result: dict[str, Any], out: Path) -> None:
    """Accuracy against prefill FLOPs, one line per method; baselines in grey."""
    lines: dict[str, list[dict]] = {}
    for one in averaged(result["cells"]):
        lines.setdefault(one["label"], []).append(one)
    colours = plt.get_cmap("tab20").colors
    figure, axes = plt.subplots(figsize=(10, 6), layout="constrained")
    for number, (name, own) in enumerate(sorted(lines.items())):
        own.sort(key=lambda c: (c["flops"], c["keep"]))
        plain = name in ("random", "uniform", "downsample")
        axes.plot(
            [100 * c["flops"] for c in own],
            [100 * c["all"] for c in own],
            color="0.6" if plain else colours[number % 20],
            linestyle="--" if plain else "-",
            marker="os^D"[number % 4],
            markersize=4,
            linewidth=1,
            label=name,
        )
    dense = result["dense"]
    axes.axhline(100 * sum(dense.values()) / len(dense), color="black", linewidth=0.8, linestyle=":", label="dense")
    axes.set_xlabel("prefill FLOPs of the language model, % of dense")
    axes.set_ylabel("right answers, % (mean over question types)")
    axes.set_title("Scenes-video: video methods at keep 50, 25 and 10 %")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.grid(alpha=0.3)
    figure.savefig(out, dpi=110)


def main(
    model: Annotated[Path, typer.Option(help="Folder of the model.")] = scenes.VIDEO_MODEL,
    count: Annotated[int, typer.Option(help="Questions per type.")] = 40,
    out: Annotated[Path, typer.Option(help="Result file; the plot goes beside it.")] = RESULTS / "clips_methods.json",
) -> None:
    """Judge every cell that the result file does not hold yet, then draw them all."""
    chat, console = Chat.load(model), Console()
    result: dict[str, Any] = {"questions_per_type": count, "cells": []}
    if out.exists():
        old = json.loads(out.read_text())
        if old["questions_per_type"] == count:
            result["cells"] = old["cells"]
    result["dense"] = judge(chat, count)
    done = {json.dumps([c["method"], c["options"], c["keep"]]) for c in result["cells"]}
    for name in cells():
        if json.dumps(list(name.values())) not in done:
            found = cell(chat, *name.values(), count)
            result["cells"].append(name | found)
            write(out, result)
            console.print(f"{name} {found['all']:.3f}")
    draw(result, out.with_name("clips_pareto.png"))


if __name__ == "__main__":
    typer.run(main)
