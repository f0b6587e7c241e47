"""What the controls ask for: one or two stages, and the Python line that does the same."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tokenprune.cli.parse import parse_value
from tokenprune.errors import BadInput
from tokenprune.explain.answers import python_line
from tokenprune.methods.base import Method, make_method
from tokenprune.methods.registry import all_methods, method_class
from tokenprune.methods.stage import Stage
from tokenprune.recipes import named

PUBLISHED = "as published"
NO_METHOD = "none"


@dataclass(frozen=True)
class Plan:
    """What `tokenprune.prune` gets: `prune(model, method, **options)`; line: the call as text."""

    method: Any
    options: dict[str, Any]
    line: str


def plan(
    method: str, keep: float, at: str, positions: str, extra: str, second: str, second_keep: float, second_at: float
) -> Plan:
    """The controls as a plan; raises `BadInput` for what cannot be asked for.

    method: a method or a recipe, which has its own budgets, places and positions. extra: options of the method as
    name=value, with semicolons between them. second: a method that runs at layer `second_at` of what the first left,
    or `none`.
    """
    own = typed_options(extra)
    if method in all_methods():
        own = {"keep": float(keep)} | own
    named(method, own)
    where = {} if at == PUBLISHED else {"at": parse_value(at)}
    if method not in all_methods():
        if second != NO_METHOD or where:
            raise BadInput("A recipe has its own stages. Choose a method to place it, or to add a second stage.")
        return Plan(method, {}, python_line(method, {}))
    if second == NO_METHOD:
        options = own | where | {"positions": positions}
        return Plan(method, options, python_line(method, options))
    if not where:
        raise BadInput("With a second stage, say where the first one stands: choose its layer.")
    first, then = make_method(method_class(method), own), make_method(method_class(second), {"keep": second_keep})
    stages = [Stage(where["at"], first), Stage(int(second_at), then)]
    texts = ", ".join(f"Stage({stage.at!r}, {call(stage.method)})" for stage in stages)
    line = f"run = tokenprune.prune(model, [{texts}], positions={positions!r})"
    return Plan(stages, {"positions": positions}, line)


def typed_options(text: str) -> dict[str, Any]:
    """`name=value; name=value` as options."""
    found = {}
    for pair in filter(None, map(str.strip, text.split(";"))):
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise BadInput(f"{pair!r} is no option. Write name=value, with semicolons between them.")
        found[name.strip()] = parse_value(value.strip())
    return found


def call(method: Method) -> str:
    """The constructor of a method, with what differs from its defaults."""
    given = [f for f in fields(method) if f.init and getattr(method, f.name) != f.default]
    return f"{type(method).__name__}({', '.join(f'{f.name}={getattr(method, f.name)!r}' for f in given)})"
