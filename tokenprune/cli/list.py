"""`tokenprune list`: methods and recipes as tables, and everything about one of them."""

from __future__ import annotations

import sys
import textwrap
from typing import Annotated

import typer

from tokenprune.catalogue.find import find
from tokenprune.catalogue.shown import arrange, describe, method_columns, model_columns, recipe_columns, width

LEGEND = (
    "layers: of 32, before which it chooses; 0 is before the LLM. reads: projected features, the vision encoder, "
    "attention in the LLM, the text of the question, what you give. one question: what is kept depends on it; any "
    "question: one choice serves all turns.",
    "`tokenprune list METHOD`: everything about one. `tokenprune list --recipes`: published operating points.",
)


def list_methods(
    name: Annotated[
        str | None, typer.Argument(help="A method, a recipe, a paper's name or an arXiv number: all about it.")
    ] = None,
    recipes: Annotated[bool, typer.Option("--recipes", help="Published operating points instead.")] = False,
    models: Annotated[bool, typer.Option("--models", help="Model types instead, and what came of each.")] = False,
) -> None:
    """Every method on one line; or every recipe, or every model type; or all about one of them.

    Into a pipe each line is whole, whatever its length.
    """
    if name is not None:
        typer.echo("\n\n".join(describe(one) for one in find(name)))
        return
    columns = recipe_columns if recipes else model_columns if models else method_columns
    for row in arrange(columns(), width()):
        typer.echo(row)
    if sys.stdout.isatty() and columns is method_columns:
        typer.echo("\n" + "\n".join(textwrap.fill(part, width() or 80) for part in LEGEND))
