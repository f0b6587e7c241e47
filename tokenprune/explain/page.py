"""An explanation as one self-contained HTML page: hover over a token to see why it stayed or went."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files

import numpy as np

from tokenprune.explain.answers import Explained
from tokenprune.explain.html import document, picture_data
from tokenprune.explain.stages import StageView
from tokenprune.plan import Plan


def page(found: Explained, model: str, plan: Plan) -> str:
    """The answers, the figures, and each stage token by token."""
    changed = "The answer is the same." if found.dense == found.pruned else "The answer changed."
    times = " / ".join(f"{1000 * seconds:.0f} ms" for seconds in found.seconds)
    parts = [
        f"<h1>{escape(found.question)}</h1>",
        f"<p>Model {escape(model)}. <code>{escape(plan.python())}</code></p>",
        f"<table><tbody><tr><td>unpruned</td><td class=answer>{escape(found.dense)}</td></tr>"
        f"<tr><td>pruned</td><td class=answer>{escape(found.pruned)}</td></tr></tbody></table>",
        f"<p><strong>{changed}</strong> Answer times, one run each: {times}.</p>",
        _figures(found),
    ]
    parts += [_stage(found, number, view) for number, view in enumerate(found.stages)]
    t, h, w = found.span.grid
    sources = [picture_data(image) for image in found.pictures]
    data = {
        "grid": [t, h, w],
        "size": list(found.pictures[0].size),
        "pictures": sources,
        "stages": [_data(view) for view in found.stages],
    }
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    parts.append(f'<script type="application/json" id="data">{text}</script>')
    return document(f"tokenprune: {found.question}", "\n".join(parts), script=_file("page.js"), style=_file("page.css"))


def _file(name: str) -> str:
    return (files("tokenprune") / "explain" / name).read_text()


def _figures(found: Explained) -> str:
    cells = ("".join(f"<td>{text}</td>" for text in row) for row in found.report.figures())
    head = "".join(f"<th>{text}</th>" for text in ("", "unpruned", "pruned", "of that"))
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _stage(found: Explained, number: int, view: StageView) -> str:
    before, after = int(view.present.sum()), int(view.kept.sum())
    box = f'<label><input type="checkbox" data-stage="{number}"> colour by score</label>' if view.scored else ""
    return (
        f"<h2>{escape(view.title)}: {before} to {after} tokens</h2>{box}"
        f'<div class="stage" id="stage{number}"></div><p class="why" id="why{number}">Hover over a token.</p>'
    )


def _data(view: StageView) -> dict[str, list]:
    def numbers(values: np.ndarray, digits: int) -> list[float | None]:
        return [None if not np.isfinite(x) else float(f"{x:.{digits}g}") for x in values.ravel().tolist()]

    return {
        "present": view.present.ravel().astype(int).tolist(),
        "kept": view.kept.ravel().astype(int).tolist(),
        "scores": numbers(view.scores, 4),
        "ranks": view.ranks.ravel().tolist(),
        "nearest": view.nearest.ravel().tolist(),
        "likeness": numbers(view.likeness, 3),
        "merged": view.merged.ravel().tolist(),
    }
