"""Methods and recipes as tables, and everything about one of them as text, as wide as there is room."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from dataclasses import Field, dataclass

from tokenprune.catalogue import facts, measured
from tokenprune.catalogue.find import Policy
from tokenprune.catalogue.models import model_rows
from tokenprune.methods.base import Method, options_of, places, signals_of
from tokenprune.methods.registry import all_methods
from tokenprune.recipes import Recipe, load_recipe, recipe_names
from tokenprune.signals.table import SIGNALS

INDENT = 11
NONE = "-"
SHORT = {"features": "feat", "encoder": "enc", "attention": "attn"}


def width() -> int | None:
    """Columns that lines must fit: of the terminal, or COLUMNS; None where the output goes to a program."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or os.environ.get("COLUMNS") else None


@dataclass(frozen=True)
class Column:
    """A column of a table: its cells, and shorter ones for narrow terminals."""

    head: str
    cells: list[str]
    short: list[str] | None = None

    def lines(self, narrow: bool) -> list[str]:
        """The head and the cells, of one length."""
        rows = [self.head, *(self.short if narrow and self.short is not None else self.cells)]
        longest = max(map(len, rows))
        return [row.ljust(longest) for row in rows]


def arrange(columns: list[Column], room: int | None) -> list[str]:
    """The rows of a table, one line each: as many columns narrow, from the left on, as it takes to fit; what is still
    too long is cut."""
    narrow = 0
    while True:
        cells = zip(*(c.lines(i < narrow) for i, c in enumerate(columns)), strict=True)
        rows = ["  ".join(row).rstrip() for row in cells]
        if room is None or max(map(len, rows)) <= room:
            return rows
        if narrow == len(columns):
            return [row if len(row) <= room else row[: room - 1] + "…" for row in rows]
        narrow += 1


def model_columns() -> list[Column]:
    """The table of model types."""
    rows = model_rows()
    return [
        Column(head, [row[i] for row in rows]) for i, head in enumerate(("model type", "pruned by", "on a tiny model"))
    ]


def method_columns() -> list[Column]:
    """The table of methods."""
    known = list(all_methods().values())
    kinds = [[kind for kind in cls.kind.split(", ") if kind != "staged"] for cls in known]  # the layers say it
    places = [facts.layers(cls) for cls in known]
    sources = [facts.reads(cls) or [NONE] for cls in known]
    best = [facts.best_for(cls) for cls in known]
    return [
        Column("name", [cls.name for cls in known]),
        Column("year", [str(cls.year or NONE) for cls in known]),
        Column("kind", [" ".join(kind) for kind in kinds], [kind[0] for kind in kinds]),
        Column("layers", places, [re.sub(r"(decode \d+) .+", r"\1+", place) for place in places]),
        Column(
            "reads", [" ".join(own) for own in sources], [" ".join(SHORT.get(s, s) for s in own) for own in sources]
        ),
        Column("best for", [facts.join_words(pair) for pair in best], [pair[1] for pair in best]),
    ]


def recipe_columns() -> list[Column]:
    """The table of recipes."""
    known = [load_recipe(name) for name in recipe_names()]
    names = [", ".join(dict.fromkeys(stage.method for stage in recipe.stages)) for recipe in known]
    return [
        Column("name", [recipe.name for recipe in known]),
        Column("model", [recipe.model for recipe in known]),
        Column("positions", [recipe.positions for recipe in known]),
        Column("stages", [facts.recipe_stages(recipe) for recipe in known], names),
        Column("published", [facts.cite(r) or NONE for r in known], [facts.figures(r) or NONE for r in known]),
    ]


def describe(one: type[Method] | Recipe | Policy) -> str:
    """Everything about a method, a recipe or a policy of positions, as labelled paragraphs."""
    if isinstance(one, Policy):
        return paragraph(one.names[0], [f"({one.paper}) {one.text}"])
    rows = recipe_rows(one) if isinstance(one, Recipe) else method_rows(one)
    return "\n".join(paragraph(label, texts) for label, texts in rows if texts)


def paragraph(label: str, texts: list[str]) -> str:
    """A label with one or more texts beside it, each wrapped to the terminal."""
    lines = []
    for i, text in enumerate(texts):
        start = f"{label if not i else '':<{INDENT}}"
        start = start if start.endswith(" ") else start + " "
        room = width()
        own = (
            [start + text]
            if room is None
            else textwrap.wrap(
                text,
                max(room, 40),
                initial_indent=start,
                subsequent_indent=" " * (INDENT + 2 * (len(texts) > 1)),
            )
        )
        lines += own
    return "\n".join(lines)


def recipe_rows(recipe: Recipe) -> list[tuple[str, list[str]]]:
    """What is known of a recipe."""
    return [
        (recipe.name, [f"recipe for {recipe.model}, {recipe.positions} positions"]),
        ("stages", [facts.recipe_stages(recipe)]),
        ("published", [facts.cite(recipe) or "no figure"]),
        ("use", [f"tokenprune.prune(model, {recipe.name!r}), or --method {recipe.name}"]),
    ]


def method_rows(method: type[Method]) -> list[tuple[str, list[str]]]:
    """What is known of a method."""
    from tokenprune.catalogue.reach import reach  # families import transformers, which takes long

    others = facts.same_paper(method)
    signals = [f"{name} {SIGNALS[name].shape}: {SIGNALS[name].what}" for name in signals_of(method)]
    return [
        (method.name, [facts.title(method)]),
        ("year", [str(method.year)] if method.year else []),
        ("paper", [method.paper + (f"; of the same paper: {', '.join(others)}" if others else "")]),
        ("kind", [method.kind]),
        ("place", [f"{facts.place(*places(method))} (of 32 layers)"]),
        ("reads", signals or ["nothing but the number of tokens and their grid"]),
        ("best for", [facts.join_words(facts.best_for(method))]),
        ("waits", [f"for the device: {method.waits}"] if method.waits else []),
        ("options", [option(field) for field in options_of(method)]),
        ("families", reach(method)),
        (
            "recipes",
            [f"{r.name}: {r.model}; {facts.cite(r) or 'no figure'}" for r in facts.recipes_of(method)] or ["none"],
        ),
        ("cost", measured.cost(method)),
        ("scores", measured.scores(method)),
    ]


def option(field: Field) -> str:
    """An option with its default, what it does and what it may be."""
    return f"--{field.name.replace('_', '-')} {facts.shown(field.default)}  {facts.meaning(field)}"
