"""Markdown tables: the one place where they are written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[object], rows: Iterable[Sequence[object]], rest: str = "---:") -> str:
    """A table whose first column stands to the left. rest: the rule of the others; the default puts numbers right."""
    rule = [":---", *[rest] * (len(head) - 1)]
    lines = [map(cell, head), rule, *(map(cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(content: object) -> str:
    r"""Text that stays within its cell: `|` and the backslashes before it are escaped, line breaks become `<br>`."""
    text = re.sub(r"(\\*)\|", r"\1\1\\|", str(content))
    return "<br>".join(text.splitlines())
