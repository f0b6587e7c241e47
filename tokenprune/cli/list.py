"""`tokenprune list`: methods with their options, recipes with their figures."""

from __future__ import annotations

from dataclasses import Field
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from tokenprune.methods.base import Method, options_of, places, signals_of
from tokenprune.methods.registry import all_methods
from tokenprune.recipes import Recipe, load_recipe, recipe_names

out = Console()
SHARED = {field.name: field for field in options_of(Method)}


def list_methods(
    recipes: Annotated[bool, typer.Option("--recipes", help="Published operating points instead.")] = False,
) -> None:
    """Every method with its paper, stage, signals and options; or every recipe with its figure."""
    if recipes:
        for name in recipe_names():
            show_recipe(load_recipe(name))
        return
    out.print("Options of every method (defaults that differ are shown with the method):")
    for field in SHARED.values():
        show_option(field)
    for cls in all_methods().values():
        signals = ", ".join(signals_of(cls)) or "none"
        place = describe(*places(cls))
        out.print(f"[bold]{cls.name}[/bold]  {cls.kind}, {cls.paper}, {place}, signals: {signals}", highlight=False)
        for field in options_of(cls):
            if field.name not in SHARED or field.default != SHARED[field.name].default:
                show_option(field)


def show_option(field: Field) -> None:
    """An option, its default and what it does."""
    text = f"    --{field.name.replace('_', '-')} {shown(field.default)}  {field.metadata['help']}"
    out.print(escape(text), highlight=False)


def shown(value: Any) -> str:
    """A default as people write it."""
    return f"{value:.5g}" if isinstance(value, float) and not value.is_integer() else str(value)


def show_recipe(recipe: Recipe) -> None:
    """A recipe on one line, its figure on the next."""
    stages = ", ".join(
        f"{s.method.name} keep {s.method.keep} {describe(s.at if s.start is None else (s.at, s.start))}"
        for s in recipe.to_stages()
    )
    out.print(f"[bold]{recipe.name}[/bold]  {recipe.model}, {recipe.positions} positions: {stages}", highlight=False)
    if recipe.published is not None:
        figures = ", ".join(f"{k} {v}" for k, v in (recipe.published.model_extra or {}).items())
        out.print(f"    published: {escape(figures)} ({escape(recipe.published.source)})", highlight=False)


def describe(*places: int | tuple[str, int]) -> str:
    """Where stages stand, in words."""
    inside = [str(at) for at in places if isinstance(at, int) and at]
    layers = [f"before layer{'s' if len(inside) > 1 else ''} {', '.join(inside)}"] if inside else []
    starts = [str(at[1]) for at in places if isinstance(at, tuple)]
    steps = [f"at every decoding step from layer{'s' if len(starts) > 1 else ''} {', '.join(starts)}"] if starts else []
    return " and ".join(["before the LLM"] * (0 in places) + layers + steps)
