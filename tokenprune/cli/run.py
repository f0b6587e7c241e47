"""`tokenprune run`: one question, unpruned and pruned."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokenprune.cli.parse import read_plan
from tokenprune.cli.shown import load_shown
from tokenprune.errors import BadInput
from tokenprune.media.files import MAX_PIXELS

if TYPE_CHECKING:
    from tokenprune.engine.run import Run

out = Console()


def run(
    context: typer.Context,
    image: Annotated[
        Path | None, typer.Option(help="Picture to ask about; scene.png, receipt.png, form.png: bundled ones.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Question. (default: one about the bundled scene)")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id of a model. (default: bundled Scenes)")] = None,
    method: Annotated[
        str, typer.Option(help="Pruning method, recipe or YAML file; `tokenprune list [--recipes]` shows all.")
    ] = "divprune",
    keep: Annotated[
        str | None, typer.Option(help="What survives: 0.1 = a tenth, 58 = 58 tokens. (default: 0.1; not for recipes)")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(help="Decoder layer (0: before the LLM), pixels, vision:8 or decode. (default: the paper's)"),
    ] = None,
    scope: Annotated[
        str | None, typer.Option(help="Budgets per part or item of a picture. (default: method's)")
    ] = None,
    positions: Annotated[str | None, typer.Option(help="original or compact ids. (default: original)")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 40,
    repeat: Annotated[int, typer.Option(min=1, help="Timed rounds, dense and pruned in turn.")] = 3,
    save: Annotated[Path | None, typer.Option(help="Write the picture with dropped tokens dimmed.")] = None,
    video: Annotated[Path | None, typer.Option(help="Video to ask about, instead of a picture.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of the video, evenly spread. (default: 32)")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second of the video, instead of --frames.")] = None,
    reader: Annotated[str | None, typer.Option(help="What decodes a video: av or decord. (default: av)")] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Most pixels of the picture, or of all frames together.")
    ] = MAX_PIXELS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Ask a question about a picture or a video, unpruned and pruned, and show what the pruning saved.

    Further options of the method (see `tokenprune list`) follow as --name value, for example --strategy row.
    """
    if video is None and (frames is not None or fps is not None):
        raise BadInput("--frames and --fps go with --video FILE.")
    if video is None and reader is not None:
        raise BadInput("--reader goes with --video FILE.")
    if video is not None and (image is not None or save is not None):
        raise BadInput("--video goes without --image, and without --save: an overlay is drawn for pictures.")
    plan = read_plan(context.args, method, keep, at=at, positions=positions, scope=scope)

    from tokenprune import scenes
    from tokenprune.api import prune
    from tokenprune.chat import Chat
    from tokenprune.explain.overlay import draw_overlay, seen_picture

    if (image is not None or video is not None) and prompt is None:
        given = "--image" if video is None else "--video"
        raise BadInput(f"{given} needs --prompt TEXT: what do you want to know about it?")
    picture, bundled = load_shown(image, video, frames, reader, max_pixels, progress=not as_json, fps=fps)
    question = prompt or scenes.QUESTION
    if model is None:
        from transformers.utils import logging

        logging.disable_progress_bar()
    if not as_json:
        out.print(f"[dim]loading {escape(model or f'the bundled model {bundled.capitalize()}')} ...[/dim]")
    chat = Chat.load(model or bundled)
    plan.check(chat.model)
    inputs = chat.inputs(picture, question)
    times: dict[str, list[float]] = {"dense": [], "pruned": []}
    for _ in range(repeat + 1):  # the first round warms up
        dense, seconds = chat.answer(inputs, max_new_tokens)
        times["dense"].append(seconds)
        with prune(chat.model, plan) as active:
            pruned, seconds = chat.answer(inputs, max_new_tokens)
        times["pruned"].append(seconds)
    timed = {name: 1000 * median(values[1:]) for name, values in times.items()}
    if save is not None:
        overlay = draw_overlay(active, seen_picture(picture, inputs["pixel_values"].cpu(), chat.processor))
        save_picture(overlay, save)
    if as_json:
        answers = {"prompt": question, "dense": dense, "pruned": pruned}
        if video is not None:
            answers["video"] = str(picture)
        result = answers | {"milliseconds": timed, "report": active.report().to_dict()}
        typer.echo(json.dumps(result, indent=1))
    else:
        show(question, dense, pruned, timed, active)
        if save is not None:
            out.print(f"overlay written to {escape(str(save))}")


def save_picture(picture: Any, path: Path) -> None:
    """Write a picture in the format of the file name's ending, in a folder that need not be there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
