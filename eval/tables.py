"""The tables of the site, from the registries and the committed results. Pages name one of `TABLES`."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

from eval import results, versions
from eval.bench.gpu_page import gpu_bars, gpu_cells, gpu_decoding, gpu_encoder, gpu_kernels, gpu_laws
from eval.bench.page import bars, both_sides, speed
from eval.matrix import matrix
from eval.media.page import videos
from eval.worlds.clips.world import CLIPS
from eval.worlds.compare import average
from eval.worlds.errors import seen_and_blind, share
from eval.worlds.pages import tables as pages
from eval.worlds.scenes.world import SCENES
from tokenprune import supports
from tokenprune.catalogue.facts import place
from tokenprune.catalogue.models import model_rows
from tokenprune.catalogue.reach import variants_of
from tokenprune.evaluation.cells import read_all
from tokenprune.evaluation.grid import load_benchmark
from tokenprune.evaluation.markdown import table
from tokenprune.evaluation.tables import against, overview
from tokenprune.families.registry import all_families
from tokenprune.methods.base import SIGNALS, Method, places
from tokenprune.methods.registry import all_methods
from tokenprune.recipes import load_recipe, recipe_names

BAR = 0.03  # of the prefill: what a selection may cost


def words(head: list[str], rows: list[list[Any]]) -> str:
    """A table of text, to the left."""
    return table(head, rows).replace("---:", ":---")


def methods() -> str:
    """Every method of the registry, with a link to its page."""
    families = list(all_families().values())
    rows = []
    for cls in all_methods().values():
        served = sum(supports(f, cls()) is None for f in families)
        best = max(sum(supports(f, m) is None for f in families) for _, m in variants_of(cls))
        reach = f"{served}" if best == served else f"{served} ({best} with other options)"
        rows.append([f"[`{cls.name}`]({cls.name}.md)", cls.year or "", cls.kind, stands(cls), reach])
    return words(["method", "year", "kind", "stage (of 32 layers)", f"families of {len(families)}"], rows)


def shape() -> str:
    """The size of the code and its knots, before the engine was taken apart and now."""
    found = results.read("shape.json")
    before, now = found["before"], found["now"]
    rows: list[list[Any]] = [
        [name, before[key], now[key]]
        for name, key in (
            ("lines of the package", "lines"),
            ("its files", "files"),
            ("the longest file", "largest_file"),
            ("files above 400 lines", "files_above_400"),
            ("lines of the engine", "engine_lines"),
            ("its files", "engine_files"),
            ("the highest cyclomatic complexity", "worst_complexity"),
            ("functions above 13", "functions_above_13"),
        )
    ]
    circles = (" and ".join(str(len(circle)) for circle in one["circles"]) or "none" for one in (before, now))
    rows.append(["files in circles of imports", *circles])
    rows.append(["lines of the README", before["readme_lines"], now["readme_lines"]])
    return table(["", f"before ({before['commit'][:7]})", "now"], rows)


def census() -> str:
    """Every model type, what it is pruned by, and what came of it on a tiny model."""
    return words(["model type", "pruned by", "on a tiny model"], [[f"`{key}`", *rest] for key, *rest in model_rows()])


def stands(cls: type[Method]) -> str:
    """Where a method's stages stand in a model of 32 layers."""
    return place(*places(cls))


def recipes() -> str:
    """Names of the recipes, by the method of their first stage."""
    groups: dict[str, list[str]] = {}
    for name in recipe_names():
        groups.setdefault(load_recipe(name).stages[0].method, []).append(f"`{name}`")
    rows = [[f"[`{method}`]({method}.md)", ", ".join(names)] for method, names in groups.items()]
    return words(["method", "recipes"], rows)


def signals() -> str:
    """Every signal that a method can read."""
    rows = []
    for name, one in SIGNALS.items():
        notes = [text for text, holds in (("depends on the question", one.asks), ("you give it", one.given)) if holds]
        rows.append([f"`{name}`", f"`{one.shape}`", one.what, ", ".join(notes)])
    return words(["signal", "shape of a span", "what it is", ""], rows)


def heldout() -> str:
    """The bundled model, seeing and blind, per question type."""
    data = results.read("scenes_heldout.json")
    rows = seen_and_blind(data)
    position = data["types"]["position"]
    note = (
        f"{data['questions_per_type']} held-out questions of each type, with standard errors. Blind: the picture is "
        f"noise. Position: median distance {position['median_distance_px']} pixels of 96, mean IoU of 24-pixel boxes "
        f"{position['mean_box_iou']:.2f}."
    )
    return table(["type", "right, %", "blind, %", "most frequent answer, %"], rows) + f"\n\n{note}"


def read_comparison() -> list[dict[str, Any]]:
    """Cells of the comparison on scenes; seeds of the random baseline averaged into one."""
    return average(results.read("scenes_methods.json")["cells"])


def full_comparison() -> str:
    """Accuracy of every method at every budget by question type, both position policies."""
    data = results.read("scenes_methods.json")
    head = ["method", "keep", "tokens: average / last layer", "prefill FLOPs", "positions", "all", *SCENES.types]
    dense = data["dense"]
    first = ["none (dense)", "", "144 / 144", "100 %", ""]
    rows = [[*first, *(f"{100 * v:.1f}" for v in (mean(dense.values()), *dense.values()))]]
    for cell in sorted(read_comparison(), key=lambda c: (-c["keep"], c["label"], c["positions"] == "compact")):
        tokens = f"{cell['average_tokens']:.0f} / {cell['final_tokens']:.0f}"
        scores = [f"{100 * v:.1f}" for v in (cell["all"], *cell["types"].values())]
        share = f"{100 * cell['flops']:.0f} %"
        rows.append([cell["label"], f"{100 * cell['keep']:.0f} %", tokens, share, cell["positions"], *scores])
    return table(head, rows)


def comparison() -> str:
    """Every method at every budget: right answers over all types, and what one budget cost."""
    data = results.read("scenes_methods.json")
    dense, count = data["dense"], data["questions_per_type"]
    groups: dict[str, dict[tuple, dict]] = {}
    for cell in read_comparison():
        groups.setdefault(cell["label"], {})[cell["keep"], cell["positions"]] = cell
    rows = []
    policies = {label: "original" if (0.25, "original") in cells else "compact" for label, cells in groups.items()}
    for label, cells in sorted(groups.items(), key=lambda item: -item[1][0.25, policies[item[0]]]["all"]):
        own = [cells.get((keep, policies[label])) for keep in (0.5, 0.25, 0.1, 0.05)]
        other = cells.get((0.25, "compact"))
        middle = own[1]
        tokens = f"{middle['average_tokens']:.0f} / {middle['final_tokens']:.0f}"
        scores = [share(c["types"].values(), count) if c else "" for c in [*own, other]]
        rows.append([label, *scores, tokens, f"{100 * middle['flops']:.0f} %"])
    whole = share(dense.values(), count)
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
    """The bundled video model, seeing and blind, per question type."""
    data = results.read("clips_heldout.json")
    note = (
        f"{data['questions_per_type']} held-out questions of each type, with standard errors. Blind: the clip is noise."
    )
    return table(["type", "right, %", "blind, %", "most frequent answer, %"], seen_and_blind(data)) + f"\n\n{note}"


def clips_comparison() -> str:
    """Every video method at every budget on the bundled video model."""
    data = results.read("clips_methods.json")
    count = data["questions_per_type"]
    groups: dict[str, dict[float, dict]] = {}
    for cell in average(data["cells"]):
        groups.setdefault(cell["label"], {})[cell["keep"]] = cell
    rows = []
    for name, cells in sorted(groups.items(), key=lambda item: -item[1][0.25]["all"]):
        middle = cells[0.25]
        tokens = f"{middle['average_tokens']:.0f} / {middle['final_tokens']:.0f}"
        if middle["looked_at"] is not None:
            tokens += f", a step looks at {256 * middle['looked_at']:.0f}"
        scores = [share(cells[keep]["types"].values(), count) for keep in (0.5, 0.25, 0.1)]
        types = [f"{100 * middle['types'][kind]:.0f}" for kind in CLIPS.types]
        rows.append([name, *scores, *types, tokens, f"{100 * middle['flops']:.0f} %"])
    whole = share(data["dense"].values(), count)
    first = [
        "none (dense)",
        *[whole] * 3,
        *(f"{100 * data['dense'][k]:.0f}" for k in CLIPS.types),
        "256 / 256",
        "100 %",
    ]
    types = [f"25 %: {CLIPS.types[0]}", *CLIPS.types[1:]]
    head = ["method", "50 %", "25 %", "10 %", *types, "tokens at 25 %: average / last", "FLOPs at 25 %"]
    note = f"{count} questions of each type for a cell; standard errors of the means."
    return table(head, [first, *rows]) + f"\n\n{note}"


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


def encoders() -> str:
    """Which vision encoders can be shortened, by family and medium."""
    rows = []
    for family in sorted(all_families().values(), key=lambda f: f.name.lower()):
        why = {media: family.whole_encoder(None, media) for media in family.media}
        cells = ["-" if media not in why else why[media] or "yes" for media in ("image", "video")]
        rows.append([family.name, *cells])
    note = (
        "A tower's own size can stand against it too: where patches do not divide evenly into tokens, or a picture is "
        "shrunk behind the encoder, `prune` or the first prompt says so."
    )
    return f"{table(['family', 'pictures', 'videos'], rows, ':---')}\n\n{note}"


def encoder_bench() -> str:
    """Both sides pruned, beside the LLM alone."""
    data = results.read("bench_encoder.json")
    parts = both_sides(data)
    chose = data["choosing"]
    shares = ", ".join(f"{100 * row['share_of_encoder']:.2f} % with {row['method']}" for row in chose["rows"])
    where = data["versions"]
    parts.append(
        f"Random weights in these models' proportions, a quarter as deep, one picture of a megapixel, "
        f"{where['threads']} threads, float32, torch {where['torch']}; medians. Ideal: a picture that had only the "
        f"kept groups, or, for stages of the LLM alone, a prompt that was short from the start. PixelPrune's choice on "
        f"{chose['patches']:,} patches takes, of the time of the second model's dense encoder, {shares}."
    )
    return "\n\n".join(parts)


def screens() -> str:
    """What PixelPrune keeps by kind of picture, and whether answers change."""
    data = results.read("screens.json")
    taus = sorted({row["tau"] for row in data["keeps"]})
    kinds = dict.fromkeys(row["kind"] for row in data["keeps"])
    cells = {(row["kind"], row["tau"]): row for row in data["keeps"]}
    rows = []
    for kind in kinds:
        own = [cells[kind, tau] for tau in taus]
        shares = [f"{100 * one['mean']:.0f} % ({100 * one['low']:.0f} to {100 * one['high']:.0f})" for one in own]
        rows.append([kind, str(own[0]["pictures"]), *shares])
    first = table(["kind", "pictures", *(f"tau={tau:g}" for tau in taus)], rows)
    answers = [
        [
            row["type"],
            f"{100 * row['dense']:.0f} %",
            f"{100 * row['pruned']:.0f} %",
            f"{row['changed']} of {row['questions']}",
            f"{100 * row['kept_of_the_last_batch']:.0f} %",
        ]
        for row in data["answers"]
    ]
    head = ["question", "right, dense", "right, pixelprune", "answers that change", "kept"]
    return f"{first}\n\n{table(head, answers)}"


TABLES: dict[str, Callable[[], str]] = {
    "versions": versions.table,
    "methods": methods,
    "recipes": recipes,
    "census": census,
    "shape": shape,
    "signals": signals,
    "matrix": matrix,
    "heldout": heldout,
    "comparison": comparison,
    "full_comparison": full_comparison,
    "claims": claims,
    "speed": speed,
    "bars": bars,
    "cost": cost,
    "clips_heldout": clips_heldout,
    "clips_comparison": clips_comparison,
    "video_cost": video_cost,
    "lmms_eval": lmms_eval,
    "videos": videos,
    "encoders": encoders,
    "encoder_bench": encoder_bench,
    "screens": screens,
    "gpu_laws": gpu_laws,
    "gpu_decoding": gpu_decoding,
    "gpu_kernels": gpu_kernels,
    "gpu_cells": gpu_cells,
    "gpu_encoder": gpu_encoder,
    "gpu_bars": gpu_bars,
    **pages.TABLES,
}
