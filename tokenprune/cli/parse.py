"""What people type as values and as options of a method."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from tokenprune.errors import BadInput
from tokenprune.methods.registry import all_methods
from tokenprune.recipes import named

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


def asked(arguments: list[str], method: str, keep: str | None, **places: str | None) -> dict[str, Any]:
    """What goes to `prune` beside the method's name: its options, keep (0.1 unless it is a recipe that says it), and
    at=, positions=, scope= as typed. A wrong name or value raises here, before a model is loaded."""
    options = parse_extra(arguments)
    if keep is not None or method in all_methods():
        options["keep"] = parse_value(keep or "0.1")
    named(method, options)
    return options | {name: None if value is None else parse_value(value) for name, value in places.items()}


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
