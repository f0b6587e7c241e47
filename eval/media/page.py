"""The table of videos that are read, from the committed result."""

from __future__ import annotations

import re
from typing import Any

from eval.results import read
from tokenprune.evaluation.markdown import table


def videos() -> str:
    """One row for each clip, one column for each reader."""
    found = read("media.json")
    readers = [f"`{name}`" for name in next(iter(found.values())) if name != "default"]
    rows = [[name, *map(_cell, own.values())] for name, own in found.items()]
    return table(["container, codec", "default", *readers], rows, ":---")


def _cell(answer: dict[str, Any]) -> str:
    if "refused" in answer:
        found = re.search(r"\((.*?)\)", answer["refused"])
        return "refused" + (f": {found[1]}" if found else "")
    wrong = [name for name, value in answer.items() if value == "wrong"]
    return f"**wrong**: {', '.join(wrong)}" if wrong else "right"
