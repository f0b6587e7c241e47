"""The worlds by name, for command lines."""

from __future__ import annotations

from typing import Annotated

import typer

from eval.worlds.base import World
from eval.worlds.clips.world import CLIPS
from eval.worlds.pages.world import PAGES
from eval.worlds.scenes.world import SCENES

WORLDS: dict[str, World] = {world.name: world for world in (SCENES, CLIPS, PAGES)}


def named(name: str) -> World:
    """The world of a name."""
    if name not in WORLDS:
        raise typer.BadParameter(f"There is no world {name!r}: {' or '.join(WORLDS)}.")
    return WORLDS[name]


Named = Annotated[World, typer.Argument(parser=named, metavar="WORLD", help="scenes, clips or pages.")]
