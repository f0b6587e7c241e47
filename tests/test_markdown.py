"""Markdown tables hold what was put into them, whatever it is: read back by a parser of its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tokenprune.evaluation.markdown import table
from tokenprune.evaluation.tables import Table

ROOT = Path(__file__).parent.parent
HARD = ["a|b", "||", "|", r"a\|b", r"a\\|b", "a\\", "two\nlines", "two\r\nlines", "a\rb", "a\u2028b", "\n", "", "a`|`b"]


def rows_of(text):
    """Cells of the tables in a text: what is shown of each."""
    found = []
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(text):
        if token.type == "tr_open":
            found.append([])
        if token.type == "inline" and found:
            found[-1].append("".join(child.content for child in token.children))
    return found


@pytest.mark.parametrize("hard", HARD)
def test_a_cell_stays_one_cell(hard):
    text = table(["a", hard, "c"], [[hard, 1, "x"], ["y", "z", hard]])
    shown = "<br>".join(hard.splitlines()).replace("`", "")
    assert text.count("\n") == 3
    assert len(text.splitlines()) == 4
    assert rows_of(text) == [["a", shown, "c"], [shown, "1", "x"], ["y", "z", shown]]


def test_a_title_stays_in_front_of_its_table():
    text = Table("a\n\nb|c", ["", "x|y"], [["p\nq", "1"]]).markdown()
    assert text.splitlines()[0] == "**a b|c**"
    assert rows_of(text) == [["", "x|y"], ["p<br>q", "1"]]


def test_no_table_is_written_elsewhere():
    """A row that is put together by hand, as a string that joins cells with bars, escapes nothing."""
    own = {ROOT / "tokenprune" / "evaluation" / "markdown.py", ROOT / "tests" / "mutants.py"}
    files = {p for folder in ("tokenprune", "eval", "kernels") for p in (ROOT / folder).rglob("*.py")} - own
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                by_hand = node.value.strip() == "|" or node.value.startswith(("| ", "|:", "|-"))
                assert not by_hand, f"{path}:{node.lineno}: {node.value!r}"
