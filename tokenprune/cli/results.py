"""`tokenprune results`: tables, a Pareto plot and a page from a folder of results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tokenprune.errors import BadInput

out = Console()


def results(
    folder: Annotated[Path, typer.Argument(help="The --out of `tokenprune eval`.")],
    benchmark: Annotated[str | None, typer.Option(help="Put a published table's figures beside them.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write accuracy against tokens and time as a PNG.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page with all of it.")] = None,
) -> None:
    """Show what `tokenprune eval` found; with --markdown, --plot and --html, write it to files."""
    from tokenprune.evaluation.cells import read_all
    from tokenprune.evaluation.grid import load_benchmark
    from tokenprune.evaluation.page import page
    from tokenprune.evaluation.pareto import pareto
    from tokenprune.evaluation.tables import against, overview

    found = read_all(folder)
    tables = overview(found)
    if benchmark is not None:
        tables = against(load_benchmark(benchmark), found) + tables
    for table in tables:
        out.print(table.rich())
    if markdown is not None:
        save(markdown, "\n\n".join(table.markdown() for table in tables) + "\n")
    if plot is not None:
        save(plot, pareto(found))
    if html is not None:
        save(html, page(f"Results of {folder.name}", tables, found))


def save(path: Path, content: str | bytes) -> None:
    """Write a file and say so."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise BadInput(f"Cannot write {path}: {error}") from error
    out.print(f"written to {escape(str(path))}")
