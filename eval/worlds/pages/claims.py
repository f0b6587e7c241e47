"""Three claims put to the test on the bundled model that reads: `python -m eval.worlds.pages.claims`.

That methods which win on scenes lose on pages: the rank correlation of what both comparisons have. That methods which
read the question pay on pages: their mean beside that of the others, there and on scenes. That PixelPrune at tau=0
costs nothing on pages: every answer that it changes, and what it keeps, by kind of page.
"""

from __future__ import annotations

from collections import defaultdict
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer
from rich.console import Console
from scipy.stats import spearmanr

from eval import results
from eval.results import RESULTS, write
from eval.screens import kept
from eval.worlds.base import is_right
from eval.worlds.compare import average
from eval.worlds.judge import answers, questions
from eval.worlds.pages.draw import KINDS, make_page
from eval.worlds.pages.sheet import TOKEN
from eval.worlds.pages.world import KEEPS, PAGES
from tokenprune import prune
from tokenprune.chat import Chat
from tokenprune.methods.registry import all_methods

BASELINES = ("random", "uniform", "downsample")


def shares(name: str, keep: float) -> dict[str, float]:
    """Right answers of each method as it stands by itself, at one budget and original positions."""
    found: dict[str, float] = {}
    for cell in average(results.read(name)["cells"]):
        plain = "at" not in cell["options"] and cell.get("positions", "original") == "original"
        if plain and cell["keep"] == keep:
            found.setdefault(cell["method"], cell["all"])
    return found


def rank(keep: float) -> dict[str, Any]:
    """Spearman's correlation of the methods that both comparisons have."""
    scenes, pages = shares("scenes_methods.json", keep), shares("pages_methods.json", keep)
    both = sorted(scenes.keys() & pages.keys())
    found = spearmanr([scenes[name] for name in both], [pages[name] for name in both])
    first = {where: max(both, key=lambda name: one[name]) for where, one in (("scenes", scenes), ("pages", pages))}
    return {
        "keep": keep,
        "methods": len(both),
        "correlation": float(found.statistic),
        "p": float(found.pvalue),
        "first": {
            where: {"method": name, "scenes": scenes[name], "pages": pages[name]} for where, name in first.items()
        },
    }


def text_guided(name: str, keep: float) -> dict[str, float]:
    """Mean share of the methods that read the question and of those that do not, baselines left out, and the standard
    error of the difference over methods."""
    groups: dict[bool, list[float]] = defaultdict(list)
    for method, right in shares(name, keep).items():
        if method in all_methods() and method not in BASELINES:
            groups["text-guided" in all_methods()[method].kind].append(right)
    asks, blind = groups[True], groups[False]
    error = sqrt(sum(stdev(group) ** 2 / len(group) for group in (asks, blind)))
    return {"asks": mean(asks), "asking": len(asks), "others": mean(blind), "error": error}


def pixelprune(chat: Chat, count: int) -> list[dict[str, Any]]:
    """By type of question: right answers with and without PixelPrune at tau=0, and which changed."""
    rows = []
    for kind in PAGES.types:
        asked = questions(PAGES, kind, count)
        dense = answers(PAGES, chat, asked)
        with prune(chat.model, "pixelprune"):
            pruned = answers(PAGES, chat, asked)
        right = [
            [is_right(a.question, text) for a, text in zip(asked, given, strict=True)] for given in (dense, pruned)
        ]
        rows.append(
            {
                "type": kind,
                "questions": count,
                "dense": mean(right[0]),
                "pruned": mean(right[1]),
                "changed": sum(a != b for a, b in zip(dense, pruned, strict=True)),
                "lost": sum(a and not b for a, b in zip(*right, strict=True)),
                "won": sum(b and not a for a, b in zip(*right, strict=True)),
            }
        )
    return rows


def keeps(count: int) -> list[dict[str, Any]]:
    """By kind of page, on grounds as drawn and on those with noise or out of JPEG: the share of tokens that stays."""
    found: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for index in range(count):
        page = make_page(PAGES.rng("test", index))
        found[page.kind, page.clean].append(kept(page.image, 0.0, TOKEN))
    return [
        {"kind": kind, "clean": clean, "pages": len(own), "mean": mean(own), "low": min(own), "high": max(own)}
        for kind in KINDS
        for clean in (True, False)
        if (own := found[kind, clean])
    ]


def main(
    count: Annotated[int, typer.Option(min=1, help="Questions of each type.")] = 60,
    pages: Annotated[int, typer.Option(min=1, help="Pages to count tokens of.")] = 300,
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS / "pages_claims.json",
) -> None:
    """Put the three to the test; the first two read the committed comparisons."""
    there = [keep for keep in KEEPS if shares("pages_methods.json", keep)]
    found: dict[str, Any] = {
        "rank": [rank(keep) for keep in there],
        "text_guided": [
            {"world": name, "keep": keep} | text_guided(f"{name}_methods.json", keep)
            for name in ("scenes", "pages")
            for keep in there
        ],
        "pixelprune": pixelprune(Chat.load(PAGES.model), count),
        "kept": keeps(pages),
    }
    for rows in found.values():
        for row in rows:
            Console().print(row)
    write(out, found)


if __name__ == "__main__":
    typer.run(main)
