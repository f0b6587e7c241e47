"""`tokenprune explain`: which tokens stay, and why, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tokenprune.cli.parse import read_plan
from tokenprune.cli.results import save
from tokenprune.cli.shown import check_shown, load_shown
from tokenprune.media.files import MAX_PIXELS

out = Console()


def explain(
    context: typer.Context,
    image: Annotated[Path | None, typer.Option(help="Picture to ask about. (default: a bundled scene)")] = None,
    video: Annotated[Path | None, typer.Option(help="Video to ask about, instead of a picture.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of the video, evenly spread. (default: 32)")] = None,
    reader: Annotated[str | None, typer.Option(help="What decodes a video: av or decord. (default: av)")] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Most pixels of the picture, or of all frames together.")
    ] = MAX_PIXELS,
    prompt: Annotated[str | None, typer.Option(help="Question. (default: one about the bundled scene)")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id of a model. (default: bundled Scenes)")] = None,
    method: Annotated[str, typer.Option(help="Pruning method, recipe or YAML file.")] = "divprune",
    keep: Annotated[str | None, typer.Option(help="What survives. (default: 0.1; not for recipes)")] = None,
    at: Annotated[
        str | None, typer.Option(help="Decoder layer (0: before the LLM), pixels or vision:8. (default: the paper's)")
    ] = None,
    positions: Annotated[str | None, typer.Option(help="original or compact ids. (default: original)")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 40,
    page: Annotated[Path, typer.Option("--out", help="Page to write.")] = Path("explanation.html"),
) -> None:
    """Write one self-contained page: for each stage which tokens stay and why, and whether the answer changes.

    Further options of the method follow as --name value.
    """
    check_shown(image, video, frames, reader, prompt)
    plan = read_plan(context.args, method, keep, at=at, positions=positions)

    from tokenprune import scenes
    from tokenprune.chat import Chat
    from tokenprune.explain.answers import explain as ask
    from tokenprune.explain.page import page as drawn

    shown, bundled = load_shown(image, video, frames, reader, max_pixels, progress=True)
    name = model or bundled
    found = ask(Chat.load(name), shown, prompt or scenes.QUESTION, plan, max_new_tokens)
    out.print(f"unpruned: {escape(found.dense)}\npruned:   {escape(found.pruned)}", highlight=False)
    save(page, drawn(found, name, plan))
