"""Writes what is generated and committed: `python -m eval.readme`.

That is the table of README.md, the stub of the package, the figures that `tokenprune list METHOD` shows, and the
picture of lmms-eval's results. The tables of the site (`eval/tables.py`) are made when it is built.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean

import tokenprune
from eval import results
from eval.tables import read_comparison
from eval.worlds.compare import average
from tokenprune.evaluation.cells import Result, read_all
from tokenprune.evaluation.markdown import table
from tokenprune.evaluation.pareto import pareto

README = Path(__file__).parent.parent / "README.md"
STUB = Path(tokenprune.__file__).with_suffix(".pyi")
MEASURED = STUB.parent / "catalogue" / "measured.json"
BLOCK = re.compile(r"(<!-- gives: generated -->\n).*?(<!-- end -->)", re.DOTALL)
SHOWN = "divprune"


def gives(found: list[Result]) -> str:
    """What pruning costs and gives on the bundled model: one method at three budgets beside the unpruned model."""
    shown = [one for one in found if one.cell.method in ("none", SHOWN) and "at" not in one.cell.options]
    shown.sort(key=lambda one: -one.cell.options.get("keep", 1.0))
    dense = shown[0]
    rows = []
    for one in shown:
        cost, keep = one.cost, f"{100 * one.cell.options.get('keep', 1.0):.0f} %"
        prefill = f"{cost.prefill_ms:.0f} ms ({dense.cost.prefill_ms / cost.prefill_ms:.1f} x)"
        score = f"{100 * one.scores['score']:.1f} %"
        rows.append([keep, f"{cost.kept_tokens:.0f}", score, prefill, f"{cost.kv_bytes / 1024:,.0f} KiB"])
    own = dense.versions
    note = (
        f"`{SHOWN}` on the bundled model (3.8 million parameters, drawn pictures), {dense.questions} questions in "
        f"batches of {dense.cell.batch_size}, {own['device']}, {own['threads']} thread, torch {own['torch']}."
    )
    return table(["keep", "visual tokens", "right answers", "prefill", "KV cache"], rows) + f"\n\n{note}"


def measured() -> str:
    """The figures that `tokenprune list METHOD` shows, from the committed results."""
    images, videos = results.read("selection_cost.json"), results.read("video_cost.json")
    where = f"{images['threads']} CPU threads, float32, keep {images['keep']}"
    choosing = [
        {
            "tokens": size["n"],
            "prefill_ms": round(size["prefill_ms"]),
            "where": where,
            "ms": {k: _digits(v) for k, v in size["selection_ms"].items()},
        }
        for size in images["sizes"]
    ]
    times = {name: _digits(t["median"]) for name, t in videos["choosing_ms"].items()}
    where = f"32 frames, {videos['threads']} CPU threads, float32, keep {videos['keep']}"
    choosing.append({"tokens": 6272, "prefill_ms": round(times.pop("prefill")), "where": where, "ms": times})
    models = [
        _scored("Scenes", results.read("scenes_methods.json"), read_comparison()),
        _scored(
            "Scenes-video", results.read("clips_methods.json"), average(results.read("clips_methods.json")["cells"])
        ),
    ]
    return json.dumps({"choosing": choosing, "models": models}, indent=1) + "\n"


def _scored(name: str, data: dict, cells: list[dict]) -> dict:
    """Right answers of a bundled model: original positions where it has both."""
    right: dict[str, dict[str, float]] = {}
    for cell in cells:
        if cell.get("positions", "original") == "original":
            right.setdefault(cell["label"], {})[f"{cell['keep']:g}"] = round(cell["all"], 4)
    questions = data["questions_per_type"] * len(data["dense"])
    return {"name": name, "questions": questions, "unpruned": round(mean(data["dense"].values()), 4), "right": right}


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


def render(text: str) -> str:
    """The README with its table brought up to date."""
    if not BLOCK.search(text):
        raise ValueError("README.md has no generated block 'gives'.")
    found = read_all(results.RESULTS / "lmms_eval")
    return BLOCK.sub(lambda m: f"{m[1]}{gives(found)}\n{m[2]}", text)


def stub() -> str:
    """What `import tokenprune` offers, for type checkers."""
    homes = {name: getattr(tokenprune, name).__module__.removeprefix("tokenprune") for name in tokenprune.__all__}
    lines = sorted(f"from {home} import {name} as {name}" for name, home in homes.items())
    return "\n".join(["# Written by `make readme`.", "# ruff: noqa", "", *lines, "", "__version__: str", ""])


if __name__ == "__main__":
    STUB.write_text(stub())
    MEASURED.write_text(measured())
    README.write_text(render(README.read_text()))
    (results.RESULTS / "lmms_eval_pareto.png").write_bytes(pareto(read_all(results.RESULTS / "lmms_eval")))
