"""The command line: `tokenprune run`, `tokenprune bench` and `tokenprune list`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import Field
from enum import Enum
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokenprune.errors import BadInput, TokenpruneError
from tokenprune.methods.base import Method, options_of, places, signals_of
from tokenprune.methods.registry import all_methods
from tokenprune.recipes import Recipe, load_recipe, named, recipe_names

if TYPE_CHECKING:
    from tokenprune.attach.run import Run

app = typer.Typer(
    help="Remove visual tokens from vision-language models at inference time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
SHARED = {field.name: field for field in options_of(Method)}
EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}


class Dtype(str, Enum):
    """Number types of `tokenprune bench`."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def parse_value(text: str) -> Any:
    """An int, a float, true, false or none where the text is one, else the text; values with commas are a list.

    `1` is one token, `1.0` is everything.
    """
    if "," in text:
        return tuple(parse_value(part) for part in text.split(",") if part)
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
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
        found[name.removeprefix("--").replace("-", "_")] = parse_value(value)
    return found


@app.command(context_settings=EXTRA)
def run(
    context: typer.Context,
    image: Annotated[Path | None, typer.Option(help="Picture to ask about. (default: a bundled scene)")] = None,
    prompt: Annotated[str | None, typer.Option(help="Question. (default: one about the bundled scene)")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id of a model. (default: bundled Scenes)")] = None,
    method: Annotated[
        str, typer.Option(help="Pruning method, recipe or YAML file; `tokenprune list [--recipes]` shows all.")
    ] = "divprune",
    keep: Annotated[
        str | None, typer.Option(help="What survives: 0.1 = a tenth, 58 = 58 tokens. (default: 0.1; not for recipes)")
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="Decoder layer, 0 = before the LLM; or decode. (default: the paper's)")
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Ask a question about a picture or a video, unpruned and pruned, and show what the pruning saved.

    Further options of the method (see `tokenprune list`) follow as --name value, for example --strategy row.
    """
    if video is None and (frames is not None or fps is not None):
        raise BadInput("--frames and --fps go with --video FILE.")
    if video is not None and (image is not None or save is not None):
        raise BadInput("--video goes without --image, and without --save: an overlay is drawn for pictures.")
    options = parse_extra(context.args)
    if keep is not None:
        options["keep"] = parse_value(keep)
    stage_options = {"at": None if at is None else parse_value(at), "positions": positions, "scope": scope}
    if keep is None and method in all_methods():
        options["keep"] = 0.1
    named(method, options)  # a typing error should not wait for a model to load

    from tokenprune import scenes
    from tokenprune.api import prune
    from tokenprune.chat import Chat
    from tokenprune.images import load_image
    from tokenprune.overlay import draw_overlay, seen_picture
    from tokenprune.video import load_video

    if (image is not None or video is not None) and prompt is None:
        given = "--image" if video is None else "--video"
        raise BadInput(f"{given} needs --prompt TEXT: what do you want to know about it?")
    picture = (
        load_image(image or scenes.IMAGE) if video is None else load_video(video, frames, fps, progress=not as_json)
    )
    question = prompt or scenes.QUESTION
    if model is None:
        from transformers.utils import logging

        logging.disable_progress_bar()
    if not as_json:
        bundled = "the bundled model Scenes" if video is None else "the bundled model Scenes-video"
        out.print(f"[dim]loading {escape(model or bundled)} ...[/dim]")
    chat = Chat.load(model or (scenes.MODEL if video is None else scenes.VIDEO_MODEL))
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


@app.command(context_settings=EXTRA)
def bench(
    context: typer.Context,
    method: Annotated[str, typer.Option(help="Methods or recipes, with commas between them.")] = "divprune",
    keep: Annotated[str | None, typer.Option(help="What survives. (default: 0.1; not for recipes)")] = None,
    at: Annotated[str | None, typer.Option(help="Decoder layer, 0 = before the LLM. (default: the paper's)")] = None,
    positions: Annotated[str | None, typer.Option(help="original or compact ids. (default: original)")] = None,
    shape: Annotated[
        str, typer.Option(help="Random weights: llama-1024, llava-1.5-7b, onevision-qwen2-7b.")
    ] = "llama-1024",
    tokens: Annotated[int, typer.Option(help="Visual tokens of a random prompt: 576, 2304 or 6272.")] = 576,
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
    own = parse_extra(context.args)
    if keep is not None:
        own["keep"] = parse_value(keep)
    stage = {"at": None if at is None else parse_value(at), "positions": positions}
    plans = {}
    for name in method.split(","):
        plans[name] = own | ({"keep": 0.1} if keep is None and name in all_methods() else {})
        named(name, plans[name])  # a typing error should not wait for a model to load

    from tokenprune.bench import command
    from tokenprune.bench.compare import Pruning

    work = command.chosen(shape, tokens, model, image, prompt, batch, None if dtype is None else dtype.value)
    prunings = [Pruning(name, name, options | stage) for name, options in plans.items()]
    command.report(out, work, prunings, rounds, new_tokens, save, as_json)


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
def list_methods(
    recipes: Annotated[bool, typer.Option("--recipes", help="Published operating points instead.")] = False,
) -> None:
    """Every method with its paper, stage, signals and options; or every recipe with its figure."""
    if recipes:
        for name in recipe_names():
            show_recipe(load_recipe(name))
        return
    out.print("Options of every method (defaults that differ are shown with the method):")
    for field in SHARED.values():
        show_option(field)
    for cls in all_methods().values():
        signals = ", ".join(signals_of(cls)) or "none"
        place = describe(*places(cls))
        out.print(f"[bold]{cls.name}[/bold]  {cls.kind}, {cls.paper}, {place}, signals: {signals}", highlight=False)
        for field in options_of(cls):
            if field.name not in SHARED or field.default != SHARED[field.name].default:
                show_option(field)


def show_option(field: Field) -> None:
    """An option, its default and what it does."""
    text = f"    --{field.name.replace('_', '-')} {shown(field.default)}  {field.metadata['help']}"
    out.print(escape(text), highlight=False)


def shown(value: Any) -> str:
    """A default as people write it."""
    return f"{value:.5g}" if isinstance(value, float) and not value.is_integer() else str(value)


def show_recipe(recipe: Recipe) -> None:
    """A recipe on one line, its figure on the next."""
    stages = ", ".join(
        f"{s.method.name} keep {s.method.keep} {describe(s.at if s.start is None else (s.at, s.start))}"
        for s in recipe.to_stages()
    )
    out.print(f"[bold]{recipe.name}[/bold]  {recipe.model}, {recipe.positions} positions: {stages}", highlight=False)
    if recipe.published is not None:
        figures = ", ".join(f"{k} {v}" for k, v in (recipe.published.model_extra or {}).items())
        out.print(f"    published: {escape(figures)} ({escape(recipe.published.source)})", highlight=False)


def describe(*places: int | tuple[str, int]) -> str:
    """Where stages stand, in words."""
    inside = [str(at) for at in places if isinstance(at, int) and at]
    layers = [f"before layer{'s' if len(inside) > 1 else ''} {', '.join(inside)}"] if inside else []
    starts = [str(at[1]) for at in places if isinstance(at, tuple)]
    steps = [f"at every decoding step from layer{'s' if len(starts) > 1 else ''} {', '.join(starts)}"] if starts else []
    return " and ".join(["before the LLM"] * (0 in places) + layers + steps)


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
