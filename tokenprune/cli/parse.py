"""What people type as values and as options of a method."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from tokenprune.errors import BadInput

if TYPE_CHECKING:
    from tokenprune.plan import Plan

EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}


def parse_value(text: str) -> Any:
    """An int, a float, true, false or none where the text is one, else the text; values with commas are a list.

    `1` is one token, `1.0` is everything.
    """
    if "," in text:
        return tuple(parse_value(part) for part in text.split(",") if part)
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


class Dtype(StrEnum):
    """Number types that a model can be loaded in."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def read_plan(arguments: list[str], method: str, keep: str | None, **places: str | None) -> Plan:
    """What to prune with: the method's name and options, keep (0.1 unless it is a recipe that says it), and at=,
    positions=, scope= as typed. A wrong name or value raises here, before a model is loaded."""
    from tokenprune.plan import Plan  # imports transformers, which takes long

    given = places if keep is None else places | {"keep": keep}
    options = parse_extra(arguments) | {name: parse_value(text) for name, text in given.items() if text is not None}
    return Plan.with_budget(0.1, method, **options)


def parse_extra(arguments: list[str]) -> dict[str, Any]:
    """`--name value` and `--name=value` pairs left over for the method."""
    found, rest = {}, list(arguments)
    while rest:
        name, has_value, value = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise BadInput(f"Unexpected argument {name!r}. Options of a method are written --name value.")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise BadInput(f"{name} needs a value: {name} VALUE.")
            value = rest.pop(0)
        found[name.removeprefix("--").replace("-", "_")] = parse_value(value)
    return found
