"""The command line: one file for each command."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console
from rich.markup import escape

from tokenprune.cli.bench import bench
from tokenprune.cli.check import check
from tokenprune.cli.demo import demo
from tokenprune.cli.evaluate import evaluate
from tokenprune.cli.explain import explain
from tokenprune.cli.list import list_methods
from tokenprune.cli.parse import EXTRA
from tokenprune.cli.results import results
from tokenprune.cli.run import run
from tokenprune.cli.serve import serve
from tokenprune.errors import TokenpruneError

app = typer.Typer(
    help="Remove visual tokens from vision-language models at inference time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(context_settings=EXTRA)(run)
app.command(context_settings=EXTRA)(bench)
app.command(context_settings=EXTRA)(explain)
app.command(context_settings=EXTRA)(check)
app.command("eval")(evaluate)
app.command()(results)
app.command()(demo)
app.command(context_settings=EXTRA)(serve)
app.command("list")(list_methods)


def main() -> None:
    """Entry point: errors raised on purpose become one line and exit code 2."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except TokenpruneError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
