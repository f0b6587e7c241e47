"""The page of one method, from its file, the registry of families, its recipes and the committed results."""

from __future__ import annotations

import inspect
import json
import re
from functools import lru_cache
from typing import Any

from eval import results
from eval.tables import read_comparison, stands, words
from eval.worlds.compare import average
from tokenprune import supports
from tokenprune.catalogue.facts import SHARED, figures, recipe_stages, shown
from tokenprune.catalogue.reach import variants_of
from tokenprune.evaluation.markdown import table
from tokenprune.families.registry import all_families
from tokenprune.methods.base import SIGNALS, Method, options_of, signals_of
from tokenprune.recipes import Recipe, load_recipe, recipe_names

LEDGER = results.RESULTS / "faithfulness.json"
TOKENS = ("tokens, average", "last layer", "FLOPs")
CODE = re.compile(r"(`[^`]*`)")


def method_page(cls: type[Method]) -> str:
    """Markdown: what it does, options, signals, families, recipes, measured scores and costs."""
    parts = [f"# {cls.name}", _facts(cls), _prose(cls), "## Use it", _use(cls), "## Options", _options(cls)]
    parts += ["## Signals", _signals(cls), "## Models", _families(cls), "## Recipes", _recipes(cls)]
    parts += ["## Measured", _measured(cls)]
    if LEDGER.exists():
        parts += ["## What it is held to", _ledger(cls)]
    return "\n\n".join(parts) + "\n"


def link(paper: str) -> str:
    """A paper with a link where it is an arXiv number."""
    found = re.fullmatch(r"arXiv (\d{4}\.\d{5}(v\d+)?)", paper)
    return f"[{paper}](https://arxiv.org/abs/{found[1]})" if found else paper


def _facts(cls: type[Method]) -> str:
    year = f", {cls.year}" if cls.year else ""
    return f"{link(cls.paper)}{year} · {cls.kind} · {stands(cls)}, in a model of 32 layers"


def _prose(cls: type[Method]) -> str:
    """Its docstring; what is not code is no Markdown."""
    pieces = CODE.split(inspect.getdoc(cls) or "")
    return "".join(p if p.startswith("`") else re.sub(r"([*_<\[\]])", r"\\\1", p) for p in pieces)


def _use(cls: type[Method]) -> str:
    keep = next(f for f in options_of(cls) if f.name == "keep").default
    return f'```python\nrun = tokenprune.prune(model, "{cls.name}", keep={0.25 if keep is None else shown(keep)})\n```'


def _options(cls: type[Method]) -> str:
    rows = []
    for field in options_of(cls):
        choices = ", ".join(f"`{choice}`" for choice in field.metadata["choices"])
        shared = field.name in SHARED and field.default == SHARED[field.name].default
        text = f"{field.metadata['help']} (every method has it)" if shared else field.metadata["help"]
        rows.append([f"`{field.name}`", f"`{shown(field.default)}`", text, choices])
    return words(["option", "default", "what it does", "choices"], rows)


def _signals(cls: type[Method]) -> str:
    rows = [[f"`{name}`", f"`{SIGNALS[name].shape}`", SIGNALS[name].what] for name in signals_of(cls)]
    if not rows:
        return "It reads nothing of the model."
    return (
        words(["signal", "shape of a span", "what it is"], rows) + "\n\nThose of all its stages, with default options."
    )


def _families(cls: type[Method]) -> str:
    families = sorted(all_families().values(), key=lambda f: f.name.lower())
    rows = []
    for name, method in variants_of(cls):
        reasons: dict[str, list[str]] = {}
        for family in families:
            why = supports(family, method)
            if why is not None:
                reasons.setdefault(why, []).append(family.name)
        served = len(families) - sum(map(len, reasons.values()))
        told = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
        rows.append([f"`{name}`", f"{served} of {len(families)}", told or "none"])
    return words(["with these options", "families", "not on"], rows) + "\n\nThe families: [Models](../models.md)."


@lru_cache(maxsize=1)
def _all_recipes() -> list[Recipe]:
    return [load_recipe(name) for name in recipe_names()]


def _recipes(cls: type[Method]) -> str:
    own = [recipe for recipe in _all_recipes() if any(stage.method == cls.name for stage in recipe.stages)]
    rows = []
    for recipe in own:
        source = recipe.published.source if recipe.published else ""
        told = [recipe.model, recipe.positions, recipe_stages(recipe), figures(recipe), source]
        rows.append([f"`{recipe.name}`", *told])
    if not rows:
        return "None: no published operating point is known."
    head = ["recipe", "model", "positions", "stages", "published", "source"]
    return words(head, rows) + "\n\nPublished figures are the papers'. None of them was measured here."


def _measured(cls: type[Method]) -> str:
    parts = [text for text in (_scenes(cls), _clips(cls), _cost(cls), _speed(cls)) if text]
    return "\n\n".join(parts) or "Not measured yet: it reads what the bundled models have not."


def _scenes(cls: type[Method]) -> str:
    own = [cell for cell in read_comparison() if cell["label"].split()[0] == cls.name]
    own.sort(key=lambda c: (c["label"], -c["keep"], c["positions"] == "compact"))
    rows = [[f"`{c['label']}`", percent(c["keep"]), c["positions"], percent(c["all"]), *_tokens(c)] for c in own]
    head = ["on the bundled image model", "keep", "positions", "right", *TOKENS]
    return _told(head, rows, "Beside the others: [Scenes](../results/scenes.md).")


def _clips(cls: type[Method]) -> str:
    own = [cell for cell in average(results.read("clips_methods.json")["cells"]) if cell["method"] == cls.name]
    own.sort(key=lambda c: (c["label"], -c["keep"]))
    rows = [[f"`{c['label']}`", percent(c["keep"]), percent(c["all"]), *_tokens(c)] for c in own]
    head = ["on the bundled video model", "keep", "right", *TOKENS]
    return _told(head, rows, "Beside the others: [Clips](../results/clips.md).")


def _tokens(cell: dict[str, Any]) -> list[str]:
    return [f"{cell['average_tokens']:.0f}", f"{cell['final_tokens']:.0f}", percent(cell["flops"])]


def _cost(cls: type[Method]) -> str:
    data = results.read("selection_cost.json")
    rows = []
    for size in data["sizes"]:
        if cls.name in size["selection_ms"]:
            own = size["selection_ms"][cls.name]
            rows.append([f"{size['n']:,}", f"{own:.1f}", f"{100 * own / size['prefill_ms']:.1f} %"])
    note = f"On a CPU, {data['threads']} threads, {percent(data['keep'])} kept: [Speed](../speed.md)."
    return _told(["choosing from so many tokens", "ms", "of the prefill that follows"], rows, note)


def _speed(cls: type[Method]) -> str:
    rows = []
    for file, machine in (("bench_cpu.json", "CPU"), ("gpu/cells.json", "GPU")):
        for name, cell in results.read(file)["cells"].items():
            for one in cell["outcomes"]:
                if one["label"].split()[0] == cls.name:
                    times = [f"{one['pruned']['times'][k]['median']:,.1f}" for k in ("prefill", "selection")]
                    ratios = [f"{one['speedup']['median']:.2f} x", f"{one['promised']:.2f} x"]
                    held = f"{one['pruned']['kv_bytes'] / 2**20:,.0f}"
                    rows.append([f"{name}: `{one['label']}`", machine, *times, *ratios, held])
    head = ["speed, random weights", "on", "prefill, ms", "of it choosing", "faster", "promised", "KV, MiB"]
    return _told(head, rows, "How it is measured: [Speed](../speed.md).")


def _told(head: list[str], rows: list[list[Any]], note: str) -> str:
    """A table with what there is to say of it; nothing without rows."""
    return f"{table(head, rows)}\n\n{note}" if rows else ""


def _ledger(cls: type[Method]) -> str:
    own = json.loads(LEDGER.read_text()).get(cls.name)
    if own is None:
        return "Not in the ledger."
    rows = [
        [one["what"], one["why"], ", ".join(f"`{name}={value!r}`" for name, value in one["published"].items())]
        for one in own["differences"]
    ]
    told = [f"Held to {cls.origin}." if hasattr(cls, "origin") else ""]
    for name, what in (
        ("vectors", "Vectors"),
        ("published_code", "Tests of these"),
        ("independent", "Computed again in"),
    ):
        if own[name]:
            told.append(f"{what}: {', '.join(f'`{one}`' for one in own[name])}.")
    text = " ".join(filter(None, told))
    return f"{text}\n\n{words(['differs on purpose', 'why', 'published behaviour'], rows)}" if rows else text


def percent(share: float) -> str:
    """A share of one."""
    return f"{100 * share:.3g} %"
