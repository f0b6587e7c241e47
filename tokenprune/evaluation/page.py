"""Results as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tokenprune.evaluation.cells import Result
from tokenprune.evaluation.pareto import pareto
from tokenprune.evaluation.tables import MISSING, Table
from tokenprune.explain.html import document, picture


def page(title: str, tables: Sequence[Table], results: Sequence[Result]) -> str:
    """Tables that sort at a click on a column's head, the Pareto plot, and where the figures come from."""
    parts = [f"<h1>{escape(title)}</h1>"]
    if any(result.cost for result in results):
        parts.append(picture(pareto(results), "accuracy against tokens and against measured prefill time"))
    parts += [html_table(table) for table in tables]
    parts.append(f"<h2>Where the figures come from</h2>{_origins(results)}")
    return document(title, "\n".join(parts), script=SORT)


def html_table(table: Table) -> str:
    """A table whose cells carry their number for sorting."""
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    return f"<h2>{escape(table.title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    number = text.split(" ")[0]
    try:
        value: float | None = float(number)
    except ValueError:
        value = float("-inf") if text == MISSING else None
    key = "" if value is None else f' data-value="{value}"'
    return f"<td{key}>{escape(text)}</td>"


def _origins(results: Sequence[Result]) -> str:
    lines: dict[str, int] = {}
    for result in results:
        versions = ", ".join(f"{name} {value}" for name, value in result.versions.items() if value is not None)
        lines[versions] = lines.get(versions, 0) + 1
    return f"<ul>{''.join(f'<li>{count} cells: {escape(text)}</li>' for text, count in lines.items())}</ul>"


SORT = """
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const column = [...head.parentNode.children].indexOf(head);
  const body = head.closest("table").tBodies[0];
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (a, b) => isNaN(key(a)) || isNaN(key(b)) ? key(a).localeCompare(key(b)) : key(a) - key(b);
  const down = head.dataset.down = head.dataset.down === "1" ? "0" : "1";
  [...body.rows].sort((a, b) => (down === "1" ? -1 : 1) * compare(a, b)).forEach(row => body.append(row));
});
"""
