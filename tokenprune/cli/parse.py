"""What people type as values and as options of a method."""

from __future__ import annotations

from typing import Any

from tokenprune.errors import BadInput

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
