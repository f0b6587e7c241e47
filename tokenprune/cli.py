"""The command line: `tokenprune run` and `tokenprune list`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokenprune.errors import BadInput, TokenpruneError
from tokenprune.methods.base import make_method, options_of
from tokenprune.methods.registry import all_methods, method_class

if TYPE_CHECKING:
    from tokenprune.attach.run import Run

app = typer.Typer(
    help="Remove visual tokens from vision-language models at inference time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}


def parse_number(text: str) -> int | float | str:
    """An int where the text is one, else a float, else the text: `1` is one token, `1.0` is everything."""
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
        found[name.removeprefix("--").replace("-", "_")] = parse_number(value)
    return found


@app.command(context_settings=EXTRA)
def run(
    context: typer.Context,
    image: Annotated[Path | None, typer.Option(help="Picture to ask about. (default: a bundled scene)")] = None,
    prompt: Annotated[str | None, typer.Option(help="Question. (default: one about the bundled scene)")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id of a model. (default: bundled Scenes)")] = None,
    method: Annotated[str, typer.Option(help="Pruning method; `tokenprune list` shows all.")] = "divprune",
    keep: Annotated[str, typer.Option(help="What survives: 0.1 = a tenth, 58 = 58 tokens.")] = "0.1",
    at: Annotated[int | None, typer.Option(help="Decoder layer; 0 = before the LLM. (default: the paper's)")] = None,
    positions: Annotated[str, typer.Option(help="original or compact position ids.")] = "original",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 40,
    repeat: Annotated[int, typer.Option(min=1, help="Timed rounds, dense and pruned in turn.")] = 3,
    save: Annotated[Path | None, typer.Option(help="Write the picture with dropped tokens dimmed.")] = None,
    video: Annotated[Path | None, typer.Option(help="Not supported yet.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Ask a question about a picture, unpruned and pruned, and show what the pruning saved.

    Further options of the method (see `tokenprune list`) follow as --name value, for example --strategy row.
    """
    if video is not None:
        raise BadInput("--video is not supported yet. Give --image FILE.")
    options = {"keep": parse_number(keep), **parse_extra(context.args)}
    stage_options = {"at": at, "positions": positions}
    make_method(method_class(method), options)  # a typing error should not wait for a model to load

    from tokenprune import scenes
    from tokenprune.api import prune
    from tokenprune.chat import Chat
    from tokenprune.images import load_image
    from tokenprune.overlay import draw_overlay, seen_picture

    if image is not None and prompt is None:
        raise BadInput("--image needs --prompt TEXT: what do you want to know about the picture?")
    picture = load_image(image or scenes.IMAGE)
    question = prompt or scenes.QUESTION
    if model is None:
        from transformers.utils import logging

        logging.disable_progress_bar()
    if not as_json:
        out.print(f"[dim]loading {escape(model or 'the bundled model Scenes')} ...[/dim]")
    chat = Chat.load(model or scenes.MODEL)
    inputs = chat.inputs(picture, question)
    times: dict[str, list[float]] = {"dense": [], "pruned": []}
    for _ in range(repeat + 1):  # the first round warms up
        dense, seconds = chat.answer(inputs, max_new_tokens)
        times["dense"].append(seconds)
        with prune(chat.model, method, **stage_options, **options) as active:
            pruned, seconds = chat.answer(inputs, max_new_tokens)
        times["pruned"].append(seconds)
    timed = {name: 1000 * median(values[1:]) for name, values in times.items()}
    if save is not None:
        overlay = draw_overlay(active, seen_picture(picture, inputs["pixel_values"].cpu(), chat.processor))
        save_picture(overlay, save)
    if as_json:
        answers = {"prompt": question, "dense": dense, "pruned": pruned}
        result = answers | {"milliseconds": timed, "report": active.report().to_dict()}
        typer.echo(json.dumps(result, indent=1))
    else:
        show(question, dense, pruned, timed, active)
        if save is not None:
            out.print(f"overlay written to {escape(str(save))}")


def save_picture(picture: Any, path: Path) -> None:
    """Write a picture in the format of the file name's ending."""
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"Cannot write the overlay to {path}: {error}") from error


def show(question: str, dense: str, pruned: str, timed: dict[str, float], active: Run) -> None:
    """Answers side by side, the report, and both times."""
    answers = Table.grid(padding=(0, 2))
    for name, text in (("question", question), ("dense", dense), ("pruned", pruned)):
        answers.add_row(f"[bold]{name}[/bold]", escape(text))
    out.print(answers)
    out.print()
    table = active.report().table()
    ratio = timed["dense"] / timed["pruned"]
    table.add_row("answer time, ms (median)", f"{timed['dense']:.1f}", f"{timed['pruned']:.1f}", f"{ratio:.2f} x speed")
    out.print(table)
    if ratio < 1:
        out.print("[yellow]Pruning did not pay here: the prompt is too short for the tokens saved to show.[/yellow]")


@app.command("list")
def list_methods() -> None:
    """Every method with its paper, stage, signals and options."""
    for cls in all_methods().values():
        example = cls()
        place = "before the LLM" if cls.default_at == 0 else f"before layer {cls.default_at}"
        signals = ", ".join(need.signal for need in example.needs) or "none"
        out.print(f"[bold]{cls.name}[/bold]  {cls.kind}, {cls.paper}, {place}, signals: {signals}", highlight=False)
        for field in options_of(cls):
            out.print(
                f"    --{field.name.replace('_', '-')} {field.default}  {field.metadata['help']}", highlight=False
            )


def main() -> None:
    """Entry point: errors raised on purpose become one line and exit code 2."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except TokenpruneError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
