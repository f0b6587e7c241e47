"""What the controls ask for: one or two stages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenprune.cli.parse import parse_value
from tokenprune.errors import BadInput
from tokenprune.methods.base import make_method
from tokenprune.methods.registry import method_class
from tokenprune.methods.stage import Stage
from tokenprune.plan import Plan
from tokenprune.recipes import Recipe

PUBLISHED = "as published"
NO_METHOD = "none"


def plan(
    method: str, keep: float, at: str, positions: str, extra: str, second: str, second_keep: float, second_at: float
) -> Plan:
    """The controls as a plan; raises `BadInput` for what cannot be asked for.

    method: a method or a recipe, which has its own budgets, places and positions. extra: options of the method as
    name=value, with semicolons between them. second: a method that runs at layer `second_at` of what the first left,
    or `none`.
    """
    first = Plan.with_budget(float(keep), method, **typed_options(extra))
    where = None if at == PUBLISHED else parse_value(at)
    if isinstance(first.what, Recipe):
        if second != NO_METHOD or where is not None:
            raise BadInput("A recipe has its own stages. Choose a method to place it, or to add a second stage.")
        return first
    if second == NO_METHOD:
        return replace(first, at=where, positions=positions)
    if where is None:
        raise BadInput("With a second stage, say where the first one stands: choose its layer.")
    then = make_method(method_class(second), {"keep": second_keep})
    return Plan.of([Stage(where, first.methods[0]), Stage(int(second_at), then)], positions=positions)


def typed_options(text: str) -> dict[str, Any]:
    """`name=value; name=value` as options."""
    found = {}
    for pair in filter(None, map(str.strip, text.split(";"))):
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise BadInput(f"{pair!r} is no option. Write name=value, with semicolons between them.")
        found[name.strip()] = parse_value(value.strip())
    return found
