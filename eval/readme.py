"""Writes what is generated and committed: `python -m eval.readme`.

That is the table of README.md, the stub of the package, the figures that `tokenprune list METHOD` shows, and the
picture of lmms-eval's results. The tables of the site (`eval/tables.py`) are made when it is built.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import tokenprune
from eval import results
from eval.tables import read_comparison
from eval.worlds.compare import average
from eval.worlds.errors import share
from tokenprune.evaluation.cells import read_all
from tokenprune.evaluation.markdown import table
from tokenprune.evaluation.pareto import pareto
from tokenprune.methods.base import places
from tokenprune.methods.place import Pixels, Vision, place_of
from tokenprune.methods.registry import all_methods

README = Path(__file__).parent.parent / "README.md"
STUB = Path(tokenprune.__file__).with_suffix(".pyi")
MEASURED = STUB.parent / "catalogue" / "measured.json"
BLOCK = re.compile(r"(<!-- gives: generated -->\n).*?(<!-- end -->)", re.DOTALL)


def gives(data: dict[str, Any]) -> str:
    """What pruning costs and gives on the bundled model that reads: at each budget the best method behind the vision
    encoder and the best before or inside it, beside random choice."""
    count = data["questions_per_type"]
    rows = [["100 %", f"unpruned {share(data['dense'].values(), count)}", "100 %, 1.0 x", "", "", ""]]
    for keep in sorted({cell["keep"] for cell in data["cells"]}, reverse=True):
        own = [cell for cell in average(data["cells"]) if cell["keep"] == keep]
        row = [f"{100 * keep:.0f} %"]
        for side in (False, True):
            best = max((cell for cell in own if is_encoder_side(cell) == side), key=lambda cell: cell["all"])
            row.append(f"`{best['label']}` {share(best['types'].values(), count)}")
            row.append(f"{100 * best['flops_both_sides']:.0f} %, {1 / best['first_token']['of_dense']:.1f} x")
        (chance,) = (cell for cell in own if cell["label"] == "random")
        rows.append([*row, share(chance["types"].values(), count)])
    own = data["versions"]
    note = (
        f"The bundled model that reads (5.3 million parameters, drawn pages), {count * len(data['dense'])} questions a "
        f"cell, right answers in % with standard errors; FLOPs of encoder and LLM, and CPU time from pixels to the "
        f"first token ({own['device']}, torch {own['torch']}). All of it: [pages](docs/results/pages.md)."
    )
    head = ["keep", "best behind the encoder", "FLOPs, speed", "best before or inside it", "FLOPs, speed", "random"]
    return table(head, rows) + f"\n\n{note}"


def is_encoder_side(cell: dict[str, Any]) -> bool:
    """Whether a cell's method stands before or inside the vision encoder."""
    given = cell["options"].get("at")
    stands = [place_of(given)] if given is not None else places(all_methods()[cell["method"]])
    return any(isinstance(one, Pixels | Vision) for one in stands)


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
        _scored("Pages", results.read("pages_methods.json"), average(results.read("pages_methods.json")["cells"])),
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
    found = gives(results.read("pages_methods.json"))
    return BLOCK.sub(lambda m: f"{m[1]}{found}\n{m[2]}", text)


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
