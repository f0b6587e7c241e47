"""Entries of a docstring, `name: what it is` at the start of a line, as a list in the reference of the site."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ENTRY = re.compile(r"^(\w+(?:, \w+)*): ", re.MULTILINE)


class Entries(Extension):
    """Used by mkdocstrings, which reads the code with griffe."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one docstring before it is rendered."""
        if obj.docstring is not None:
            obj.docstring.value = as_list(obj.docstring.value)


def as_list(text: str) -> str:
    """A docstring with its entries as items of a Markdown list; what else there is stays."""
    lines, inside = [], False
    for line in text.splitlines():
        item = ENTRY.match(line)
        if item and not inside:
            lines.append("")  # a list stands by itself
        inside = bool(item) or (inside and line != "")
        lines.append(ENTRY.sub(r"- `\1`: ", line))
    return "\n".join(lines)
