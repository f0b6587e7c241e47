"""`tokenprune check`: whether pruning holds on a model and a prompt, here and today."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenprune.cli.parse import Dtype, read_plan
from tokenprune.cli.shown import check_shown, load_shown
from tokenprune.media.files import MAX_PIXELS


def check(
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
    scope: Annotated[str | None, typer.Option(help="Budgets per part or item of a picture.")] = None,
    positions: Annotated[str | None, typer.Option(help="original or compact ids. (default: original)")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Decoding steps to compare.")] = 3,
    dtype: Annotated[Dtype, typer.Option(help="float32 finds the smallest mistakes.")] = Dtype.float32,
    attention: Annotated[str | None, typer.Option(help="Attention kernel of the model. (default: its own)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Compare the pruned model with the full-length one in which the dropped tokens are masked, and keep=1.0 with the
    unpruned one: layer by layer, for the prompt and some decoding steps. Exit code 1 where one of them does not hold.

    Further options of the method follow as --name value.
    """
    check_shown(image, video, frames, reader, prompt)
    plan = read_plan(context.args, method, keep, at=at, scope=scope, positions=positions)

    from tokenprune import scenes
    from tokenprune.chat import Chat
    from tokenprune.checking.check import check as compared

    if model is None:
        from transformers.utils import logging

        logging.disable_progress_bar()
    shown, bundled = load_shown(image, video, frames, reader, max_pixels, progress=not as_json)
    more: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    chat = Chat.load(model or bundled, dtype=dtype.value, **more)
    found = compared(chat.model, chat.inputs(shown, prompt or scenes.QUESTION), plan, new_tokens=new_tokens)
    typer.echo(json.dumps(asdict(found) | {"ok": found.ok}, indent=1) if as_json else str(found))
    raise typer.Exit(0 if found.ok else 1)
