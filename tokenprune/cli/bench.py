"""`tokenprune bench`: dense, pruned and ideal, timed by turns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tokenprune.cli.parse import Dtype, read_plan

out = Console()


def bench(
    context: typer.Context,
    method: Annotated[str, typer.Option(help="Methods or recipes, with commas between them.")] = "divprune",
    keep: Annotated[str | None, typer.Option(help="What survives. (default: 0.1; not for recipes)")] = None,
    at: Annotated[
        str | None, typer.Option(help="Decoder layer (0: before the LLM), pixels or vision:8. (default: the paper's)")
    ] = None,
    positions: Annotated[str | None, typer.Option(help="original or compact ids. (default: original)")] = None,
    shape: Annotated[
        str,
        typer.Option(
            help="Random weights: llama-1024, llava-1.5-7b, onevision-qwen2-7b, qwen2.5-vl-3b, qwen3-vl-2b (these two "
            "a quarter as deep; with -whole behind the name all of it)."
        ),
    ] = "llama-1024",
    tokens: Annotated[
        int, typer.Option(help="Visual tokens of a random prompt: 576, 2304 or 6272; Qwen: 1 or 4 Mpx.")
    ] = 576,
    model: Annotated[str | None, typer.Option(help="Folder or hub id of a model, instead of --shape.")] = None,
    image: Annotated[Path | None, typer.Option(help="Picture for --model.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Question for --model.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows of the batch.")] = 1,
    dtype: Annotated[
        Dtype | None, typer.Option(help="(default: float32 on a CPU, bfloat16 or the checkpoint's on a GPU)")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds, all sides by turns.")] = 5,
    new_tokens: Annotated[int, typer.Option(min=0, help="Tokens to decode after the first.")] = 8,
    save: Annotated[Path | None, typer.Option(help="Write the result as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Time dense, pruned and ideal (a prompt that was short from the start) by turns, and say whether pruning pays.

    Further options of a single method follow as --name value.
    """
    plans = {name: read_plan(context.args, name, keep, at=at, positions=positions) for name in method.split(",")}

    from tokenprune.bench import command

    work = command.choose(shape, tokens, model, image, prompt, batch, None if dtype is None else dtype.value)
    command.report(out, work, plans, rounds, new_tokens, save, as_json)
