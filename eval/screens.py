"""What PixelPrune keeps of screens, documents and photographs, and whether answers change: `python -m eval.screens`.

Screens and pages are drawn here, flat grounds and rendered text, in groups of 28 x 28 pixels; photographs and scans are
those that come with scikit-image, brought to the same size. Answers: of the bundled model, to scenes on a flat ground.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import skimage
import torch
import typer
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from eval.results import RESULTS, write
from eval.worlds import judge
from eval.worlds.judge import Asked
from eval.worlds.scenes.world import SCENES
from tokenprune import prune
from tokenprune.chat import Chat
from tokenprune.methods.base import View
from tokenprune.methods.pixelprune import PixelPrune

SIDE, GROUP, COUNT = 1008, 28, 8
TAUS = (0.0, 0.02, 0.05)
WORDS = [
    "total",
    "report",
    "the",
    "of",
    "amount",
    "page",
    "value",
    "open",
    "file",
    "name",
    "date",
    "sum",
    "items",
    "view",
    "edit",
    "help",
    "answer",
    "12",
    "407",
    "3.5",
    "98",
]
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "motorcycle_left")
SCANS = ("page", "text")
TYPES = ("colour", "shape", "digit", "count", "position", "existence")


def write_lines(draw: ImageDraw.ImageDraw, rng: np.random.Generator, box: tuple[int, int, int, int], size: int) -> None:
    """Lines of words, dark, in a box."""
    font, (left, top, right, bottom) = ImageFont.load_default(size), box
    for y in range(top, bottom - size, int(1.5 * size)):
        line = " ".join(rng.choice(WORDS, max(1, (right - left) // (4 * size))))
        draw.text((left, y), line, font=font, fill=(30, 30, 40))


def page(rng: np.random.Generator) -> Image.Image:
    """A document: margins, a heading, paragraphs."""
    image = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    draw, y = ImageDraw.Draw(image), 150
    write_lines(draw, rng, (90, 70, SIDE - 400, 120), 32)
    while y < SIDE - 150:
        height = int(rng.integers(80, 200))
        write_lines(draw, rng, (90, y, SIDE - 90, min(y + height, SIDE - 90)), 18)
        y += height + int(rng.integers(30, 90))
    return image


def screen(rng: np.random.Generator) -> Image.Image:
    """A desktop: a bar, windows with titles and some text, buttons."""
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(x) for x in rng.integers(30, 90, 3)))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, SIDE, 40), fill=(225, 225, 230))
    write_lines(draw, rng, (20, 8, 500, 40), 18)
    for _ in range(int(rng.integers(2, 4))):
        left, top = (int(x) for x in rng.integers(40, SIDE // 2, 2))
        right, bottom = left + int(rng.integers(300, 460)), top + int(rng.integers(260, 460))
        draw.rectangle((left, top, right, bottom), fill=(250, 250, 250), outline=(90, 90, 90))
        draw.rectangle((left, top, right, top + 34), fill=(60, 110, 190))
        write_lines(draw, rng, (left + 16, top + 56, right - 16, top + 56 + int(rng.integers(60, 180))), 16)
        draw.rectangle((right - 110, bottom - 50, right - 20, bottom - 18), fill=(200, 205, 215))
    return image


def sheet(rng: np.random.Generator) -> Image.Image:
    """A table of figures, some cells empty."""
    image = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    for y in range(0, SIDE, 32):
        draw.line((0, y, SIDE, y), fill=(205, 205, 205))
    for x in range(0, SIDE, 96):
        draw.line((x, 0, x, SIDE), fill=(205, 205, 205))
        for y in range(0, SIDE // 2, 32):
            if rng.random() < 0.6:
                draw.text((x + 8, y + 6), f"{rng.integers(0, 99999):,}", font=font, fill=(20, 20, 20))
    return image


def chart(rng: np.random.Generator) -> Image.Image:
    """Bars over an axis."""
    image = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    draw.line((100, 900, 950, 900), fill=(0, 0, 0), width=3)
    for x in range(130, 930, 100):
        draw.rectangle(
            (x, 900 - int(rng.integers(80, 700)), x + 60, 898), fill=tuple(int(c) for c in rng.integers(40, 220, 3))
        )
        write_lines(draw, rng, (x, 915, x + 60, 945), 16)
    write_lines(draw, rng, (300, 50, 800, 100), 28)
    return image


def bundled(names: tuple[str, ...]) -> list[Image.Image]:
    """Pictures that come with scikit-image."""
    return [
        Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        if hasattr(skimage.data, name)
        else Image.open(Path(skimage.data.__file__).parent / f"{name}.png").convert("RGB").resize((SIDE, SIDE))
        for name in names
    ]


def kept(picture: Image.Image, tau: float, group: int = GROUP) -> float:
    """The share of its groups of group x group pixels that PixelPrune keeps."""
    pixels = torch.from_numpy(np.asarray(picture).copy()).float() / 255
    rows, columns = picture.height // group, picture.width // group
    count = rows * columns
    groups = pixels.view(rows, group, columns, group, 3).transpose(1, 2).reshape(1, count, -1)
    view = View(count, 1, ((1, rows, columns),), {"pixels": groups}, total=count)
    return PixelPrune(tau=tau).select(view).index.shape[1] / count


def keeps() -> list[dict[str, Any]]:
    """By kind of picture and tau: mean, smallest and largest share that stays."""
    drawn: dict[str, Callable[[np.random.Generator], Image.Image]] = {
        "page": page,
        "screen": screen,
        "sheet": sheet,
        "chart": chart,
    }
    pictures = {name: [make(np.random.default_rng([5, i])) for i in range(COUNT)] for name, make in drawn.items()}
    pictures |= {"scan": bundled(SCANS), "photograph": bundled(PHOTOGRAPHS)}
    rows = []
    for kind, own in pictures.items():
        for tau in TAUS:
            shares = [kept(picture, tau) for picture in own]
            rows.append(
                {
                    "kind": kind,
                    "pictures": len(own),
                    "tau": tau,
                    "mean": mean(shares),
                    "low": min(shares),
                    "high": max(shares),
                }
            )
    return rows


def on_flat_ground(asked: Asked, scene: Any) -> Asked:
    """The same question to a picture whose ground, and whose things, are of one colour each."""
    pixels = scene.pixels.copy()
    ground = np.median(pixels.reshape(-1, 3), axis=0)
    far = np.abs(pixels.astype(float) - ground).max(-1)
    pixels[far < 90] = ground
    return Asked(asked.question, Image.fromarray(pixels))


def answers(count: int) -> list[dict[str, Any]]:
    """By type of question: what is right dense and with PixelPrune at tau=0, and how many answers it changes."""
    chat, rows = Chat.load("scenes"), []
    for kind in TYPES:
        asked, index = [], 0
        while len(asked) < count:
            scene = SCENES.draw(SCENES.rng("test", index))
            question = SCENES.ask[kind](np.random.default_rng([2027, SCENES.types.index(kind), index]), scene)
            index += 1
            if question is not None:
                asked.append(on_flat_ground(Asked(question, scene.image), scene))
        dense = judge.answers(SCENES, chat, asked)
        with prune(chat.model, "pixelprune") as run:
            pruned = judge.answers(SCENES, chat, asked)
            report = run.report()
        rows.append(
            {
                "type": kind,
                "questions": count,
                "dense": judge.score(SCENES, asked, dense)["right"],
                "pruned": judge.score(SCENES, asked, pruned)["right"],
                "changed": sum(a != b for a, b in zip(dense, pruned, strict=True)),
                "kept_of_the_last_batch": report.final_tokens / report.tokens,
            }
        )
    return rows


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS / "screens.json",
    count: Annotated[int, typer.Option(min=1, help="Questions of each type.")] = 100,
) -> None:
    """Measure both and write the result."""
    console = Console()
    shares, changed = keeps(), answers(count)
    for row in [*shares, *changed]:
        console.print(row)
    write(out, {"side": SIDE, "group": GROUP, "keeps": shares, "answers": changed})


if __name__ == "__main__":
    typer.run(main)
