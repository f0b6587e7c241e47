"""Writes what follows from the registry and the committed results: `python -m eval.readme`.

That is the generated parts of README.md, the page with the whole comparison, the stub of the package, and the figures
that `tokenprune list METHOD` shows.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import tokenprune
from eval import results, versions
from eval.bench.page import bars, speed
from eval.matrix import matrix
from eval.worlds.clips.world import CLIPS
from eval.worlds.compare import average
from eval.worlds.scenes.world import SCENES
from tokenprune.catalogue.facts import own_options, place, shown
from tokenprune.catalogue.reach import obstacle, variants_of
from tokenprune.evaluation.cells import read_all
from tokenprune.evaluation.grid import load_benchmark
from tokenprune.evaluation.pareto import pareto
from tokenprune.evaluation.tables import against, overview
from tokenprune.families.registry import all_families
from tokenprune.markdown import table
from tokenprune.methods.base import places, signals_of
from tokenprune.methods.registry import all_methods
from tokenprune.recipes import load_recipe, recipe_names

README = Path(__file__).parent.parent / "README.md"
FULL = results.RESULTS / "scenes_methods.md"
STUB = Path(tokenprune.__file__).with_suffix(".pyi")
MEASURED = STUB.parent / "catalogue" / "measured.json"
BAR = 0.03  # of the prefill: what a selection may cost


def methods() -> str:
    """Every method of the registry."""
    families = list(all_families().values())
    rows = []
    for cls in all_methods().values():
        plain = cls()
        options = ", ".join(f"`{f.name}={shown(f.default)}`" for f in own_options(cls))
        signals = ", ".join(f"`{name}`" for name in signals_of(cls)) or "none"
        served = sum(obstacle(f, plain) is None for f in families)
        best = max(sum(obstacle(f, m) is None for f in families) for _, m in variants_of(cls))
        reach = f"{served}" if best == served else f"{served} ({best} with other options)"
        where = place(*places(cls))
        rows.append([f"`{cls.name}`", cls.year or "", cls.paper, cls.kind, where, signals, reach, options])
    head = ["method", "year", "paper", "kind", "stage (of 32 layers)", "signals", f"families of {len(families)}"]
    return table([*head, "options and defaults"], rows)


def recipes() -> str:
    """Names of the recipes, by the method of their first stage."""
    groups: dict[str, list[str]] = {}
    for name in recipe_names():
        groups.setdefault(load_recipe(name).stages[0].method, []).append(f"`{name}`")
    return table(["method", "recipes"], [[f"`{method}`", ", ".join(names)] for method, names in groups.items()])


def seen_and_blind(data: dict[str, Any]) -> str:
    """A bundled model, seeing and blind, per question type."""
    names = ("right", "blind", "majority")
    rows = [[kind, *(f"{100 * found[n]:.1f}" for n in names)] for kind, found in data["types"].items()]
    rows.append(["**all**", *(f"**{100 * data['all'][n]:.1f}**" for n in names)])
    return table(["type", "right, %", "blind, %", "most frequent answer, %"], rows)


def heldout() -> str:
    """The bundled model of pictures."""
    data = results.read("scenes_heldout.json")
    position = data["types"]["position"]
    note = (
        f"{data['questions_per_type']} held-out questions of each type. Blind: the picture is replaced by noise. "
        f"Position: median distance {position['median_distance_px']} pixels of 96, mean IoU of 24-pixel boxes "
        f"{position['mean_box_iou']:.2f}."
    )
    return f"{seen_and_blind(data)}\n\n{note}"


def full_comparison() -> str:
    """Accuracy of every method at every budget by question type, both position policies."""
    data = results.read("scenes_methods.json")
    head = ["method", "keep", "tokens: average / last layer", "prefill FLOPs", "positions", "all", *SCENES.types]
    dense = data["dense"]
    first = ["none (dense)", "", "144 / 144", "100 %", ""]
    rows = [[*first, *(f"{100 * v:.1f}" for v in (mean(dense.values()), *dense.values()))]]
    for cell in sorted(average(data["cells"]), key=lambda c: (-c["keep"], c["label"], c["positions"] == "compact")):
        tokens = f"{cell['average_tokens']:.0f} / {cell['final_tokens']:.0f}"
        scores = [f"{100 * v:.1f}" for v in (cell["all"], *cell["types"].values())]
        share = f"{100 * cell['flops']:.0f} %"
        rows.append([cell["label"], f"{100 * cell['keep']:.0f} %", tokens, share, cell["positions"], *scores])
    return table(head, rows)


def comparison() -> str:
    """Every method at every budget: right answers over all types, and what one budget cost."""
    data = results.read("scenes_methods.json")
    dense = data["dense"]
    groups: dict[str, dict[tuple, dict]] = {}
    for cell in average(data["cells"]):
        groups.setdefault(cell["label"], {})[cell["keep"], cell["positions"]] = cell
    rows = []
    for label, cells in groups.items():
        policy = "original" if (0.25, "original") in cells else "compact"
        own = [cells.get((keep, policy)) for keep in (0.5, 0.25, 0.1, 0.05)]
        other = cells.get((0.25, "compact"))
        middle = own[1]
        tokens = f"{middle['average_tokens']:.0f} / {middle['final_tokens']:.0f}"
        scores = [f"{100 * c['all']:.1f}" if c else "" for c in own]
        compact = f"{100 * other['all']:.1f}" if other else ""
        rows.append([label, *scores, compact, tokens, f"{100 * middle['flops']:.0f} %"])
    rows.sort(key=lambda r: -float(r[2]))
    whole = f"{100 * mean(dense.values()):.1f}"
    head = ["method", "50 %", "25 %", "10 %", "5 %", "25 %, compact", "tokens at 25 %: average / last", "FLOPs at 25 %"]
    return table(head, [["none (dense)", whole, whole, whole, whole, whole, "144 / 144", "100 %"], *rows])


def claims() -> str:
    """The two published claims, and what came of them here."""
    data = results.read("scenes_claims.json")
    rows = []
    for row in data["feather_against_fastv"]:
        name = f"{row['name']} before layer{'s' if len(row['at']) > 1 else ''} {', '.join(map(str, row['at']))}"
        scores = [f"{100 * row['types'][kind]['right']:.1f}" for kind in ("position", "relation")]
        rows.append([name, f"{100 * row['flops']:.0f} %", *scores, f"{row['types']['position']['mean_box_iou']:.2f}"])
    head = ["grounding at equal FLOPs", "FLOPs", "position, %", "relation, %", "mean box IoU"]
    text = table(head, rows) + "\n\n"
    kinds = list(data["dense"])
    gaps = []
    for keep in dict.fromkeys(cell["keep"] for cell in data["gap"]):
        share = {
            policy: [
                mean(c["types"][k] for c in data["gap"] if (c["keep"], c["positions"]) == (keep, policy)) for k in kinds
            ]
            for policy in ("original", "compact")
        }
        for policy, values in share.items():
            gaps.append([f"{100 * keep:.0f} %", policy, *(f"{100 * v:.1f}" for v in values)])
    methods = ", ".join(dict.fromkeys(cell["method"] for cell in data["gap"]))
    count = data["questions_per_type"]
    note = f"{count} questions of each type. Position policies: mean over {methods}."
    return text + table(["keep", "positions", *kinds], gaps) + f"\n\n{note}"


def cost() -> str:
    """Which methods choose slower than 3 % of the prefill that follows."""
    data = results.read("selection_cost.json")
    sizes = data["sizes"]
    names = list(sizes[0]["selection_ms"])
    share = {name: [s["selection_ms"][name] / s["prefill_ms"] for s in sizes] for name in names}
    slow = sorted((n for n in names if max(share[n]) > BAR), key=lambda n: -max(share[n]))
    rows = [[f"`{n}`", *(f"{100 * v:.1f} %" for v in share[n])] for n in slow]
    fast = ", ".join(f"`{n}`" for n in names if n not in slow)
    head = ["over 3 % somewhere", *(f"n = {s['n']:,}" for s in sizes)]
    prefill = " / ".join(f"{s['prefill_ms'] / 1000:.1f}" for s in sizes)
    note = (
        f"Selection time over the prefill of what was kept ({100 * data['keep']:.0f} %, {prefill} s), "
        f"{data['threads']} threads, float32. Under 3 % at every size: {fast}."
    )
    return table(head, rows) + f"\n\n{note}"


def clips_heldout() -> str:
    """The bundled model of clips."""
    data = results.read("clips_heldout.json")
    note = f"{data['questions_per_type']} held-out questions of each type. Blind: the clip is replaced by noise."
    return f"{seen_and_blind(data)}\n\n{note}"


def clips_comparison() -> str:
    """Every video method at every budget on the bundled video model."""
    data = results.read("clips_methods.json")
    groups: dict[str, dict[float, dict]] = {}
    for cell in average(data["cells"]):
        groups.setdefault(cell["label"], {})[cell["keep"]] = cell
    rows = []
    for name, cells in groups.items():
        middle = cells[0.25]
        tokens = f"{middle['average_tokens']:.0f} / {middle['final_tokens']:.0f}"
        if middle["looked_at"] is not None:
            tokens += f", a step looks at {256 * middle['looked_at']:.0f}"
        scores = [f"{100 * cells[keep]['all']:.1f}" for keep in (0.5, 0.25, 0.1)]
        types = [f"{100 * middle['types'][kind]:.0f}" for kind in CLIPS.types]
        rows.append([name, *scores, *types, tokens, f"{100 * middle['flops']:.0f} %"])
    rows.sort(key=lambda r: -float(r[2]))
    whole = f"{100 * mean(data['dense'].values()):.1f}"
    first = [
        "none (dense)",
        *[whole] * 3,
        *(f"{100 * data['dense'][k]:.0f}" for k in CLIPS.types),
        "256 / 256",
        "100 %",
    ]
    types = [f"25 %: {CLIPS.types[0]}", *CLIPS.types[1:]]
    head = ["method", "50 %", "25 %", "10 %", *types, "tokens at 25 %: average / last", "FLOPs at 25 %"]
    return table(head, [first, *rows]) + f"\n\n{data['questions_per_type']} questions of each type for a cell."


def video_cost() -> str:
    """Selection of the video methods, and a decoding step behind contexts of several lengths."""
    data = results.read("video_cost.json")
    times = dict(data["choosing_ms"])
    prefill = times.pop("prefill")["median"]
    rows = [
        [f"`{name}`", f"{t['median']:.0f}", f"{t['min']:.0f} to {t['max']:.0f}", f"{100 * t['median'] / prefill:.1f} %"]
        for name, t in sorted(times.items(), key=lambda item: item[1]["median"])
    ]
    first = table(["choosing from 6,272 tokens", "ms", "range", "of the prefill"], rows)
    steps = []
    for row in data["decoding"]:
        dense = row["step_ms"]["dense"]["median"]
        cells = [f"{dense:.1f}"]
        for mode in ("anew", "stands"):
            own = row["step_ms"][mode]["median"]
            cells.append(f"{own:.1f} ({dense / own:.2f} x)")
        share = f"{100 * row['read_bytes']['stands'] / row['read_bytes']['dense']:.0f} %"
        steps.append([f"{row['visual_tokens']:,}", *cells, share])
    head = ["visual tokens", "dense step, ms", "choosing anew (speed-up)", "choice stands (speed-up)", "KV read"]
    kept, looked = (f"{100 * data[name]:.0f} %" for name in ("keep", "looked_at"))
    note = (
        f"Choosing: 32 frames of 14 x 14, {kept} kept, prefill of what was kept {prefill / 1000:.1f} s. Steps: "
        f"DyCoke's rule, {looked} looked at from layer 2 of 8. {data['threads']} threads, float32."
    )
    return f"{first}\n\n{table(head, steps)}\n\n{note}"


def lmms_eval() -> str:
    """The bundled model through lmms-eval, beside what was counted without it."""
    found = read_all(results.RESULTS / "lmms_eval")
    benchmark = load_benchmark("scenes")
    (published,) = against(benchmark, found)
    (grid,) = overview(found)
    origin = found[0].versions
    note = f"{origin['device']}, {origin['threads']} thread, torch {origin['torch']}, prefill of batches of 8."
    return f"{published.markdown()}\n\n{grid.markdown()}\n\n{note}"


BLOCKS = {
    "versions": versions.table,
    "methods": methods,
    "recipes": recipes,
    "matrix": matrix,
    "heldout": heldout,
    "comparison": comparison,
    "claims": claims,
    "speed": speed,
    "bars": bars,
    "cost": cost,
    "clips_heldout": clips_heldout,
    "clips_comparison": clips_comparison,
    "video_cost": video_cost,
    "lmms_eval": lmms_eval,
}


def full_page() -> str:
    """The page with the whole comparison."""
    return (
        "# Every method on the bundled model, by question type\n\nShare of right answers, %. Tokens are visual tokens. "
        f"Regenerate with `make results readme`.\n\n{full_comparison()}\n"
    )


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
        _scored("Scenes", results.read("scenes_methods.json"), average(results.read("scenes_methods.json")["cells"])),
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
    """The README with every generated block brought up to date."""
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name}: generated -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no block {name!r}.")
        text = pattern.sub(lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text)
    return text


def stub() -> str:
    """What `import tokenprune` offers, for type checkers."""
    homes = {name: getattr(tokenprune, name).__module__.removeprefix("tokenprune") for name in tokenprune.__all__}
    lines = sorted(f"from {home} import {name} as {name}" for name, home in homes.items())
    return "\n".join(["# Written by `make readme`.", "# ruff: noqa", "", *lines, "", "__version__: str", ""])


if __name__ == "__main__":
    STUB.write_text(stub())
    MEASURED.write_text(measured())
    FULL.write_text(full_page())
    README.write_text(render(README.read_text()))
    (results.RESULTS / "lmms_eval_pareto.png").write_bytes(pareto(read_all(results.RESULTS / "lmms_eval")))
