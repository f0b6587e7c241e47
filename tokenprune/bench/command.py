"""`tokenprune bench`: what the command line measures and prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.markup import escape

from tokenprune.bench import record, table
from tokenprune.bench.compare import compare
from tokenprune.bench.workload import Workload, workload
from tokenprune.chat import Chat
from tokenprune.errors import BadInput
from tokenprune.media.pictures import load_image
from tokenprune.plan import Plan

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose(
    shape: str, tokens: int, model: str | None, image: Path | None, prompt: str | None, batch: int, dtype: str | None
) -> Workload:
    """The workload that the options describe: a random shape, or the user's model on a picture."""
    gpu = torch.cuda.is_available()
    if model is None:
        if image is not None or prompt is not None:
            raise BadInput("--image and --prompt go with --model; a random shape makes its own prompt.")
        number = DTYPES[dtype or ("bfloat16" if gpu else "float32")]
        return workload(shape, tokens, batch, "cuda" if gpu else "cpu", number)
    if image is None or prompt is None:
        raise BadInput("--model needs --image FILE and --prompt TEXT.")
    picture = load_image(image)
    chat = Chat.load(model)
    inputs = dict(chat.inputs(picture, prompt))
    whole = {name: value.repeat(batch, *[1] * (value.ndim - 1)) for name, value in inputs.items()}
    loaded: Any = chat.model
    if dtype is not None:
        loaded = loaded.to(DTYPES[dtype])
    return Workload(f"{model}, {image.name}", loaded, whole)


def report(
    console: Console,
    work: Workload,
    plans: Mapping[str, Plan],
    rounds: int,
    new_tokens: int,
    save: Path | None,
    as_json: bool,
) -> None:
    """Measure, then print tables (or JSON), warnings, and where the result was written."""
    with console.status("measuring ...") if not as_json else Console(stderr=True).status("measuring ...") as status:
        result = compare(work, plans, rounds, new_tokens, lambda text: status.update(escape(text)))
    whole: dict[str, Any] = result.to_dict()
    if save is not None:
        record.write(save, whole)
    if as_json:
        typer.echo(record.text(whole), nl=False)
        return
    console.print(table.costs(result))
    console.print(table.ratios(result))
    for warning in result.warnings():
        console.print(f"[yellow]{escape(warning)}[/yellow]")
    if save is not None:
        console.print(f"result written to {escape(str(save))}")
