"""What a command asks about: a picture or a video, and the question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from tokenprune import scenes
from tokenprune.errors import BadInput

out = Console()


def check_shown(
    image: Path | None, video: Path | None, frames: int | None, reader: str | None, prompt: str | None
) -> None:
    """Raise `BadInput` for options that do not go together, before anything is loaded."""
    if image is not None and video is not None:
        raise BadInput("Give --image or --video, not both.")
    if video is None and frames is not None:
        raise BadInput("--frames goes with --video FILE.")
    if video is None and reader is not None:
        raise BadInput("--reader goes with --video FILE.")
    if (image is not None or video is not None) and prompt is None:
        raise BadInput(f"--{'video' if image is None else 'image'} needs --prompt TEXT: what do you want to know?")


def load_shown(
    image: Path | None,
    video: Path | None,
    frames: int | None,
    reader: str | None,
    max_pixels: int,
    progress: bool,
    fps: float | None = None,
) -> tuple[Any, str]:
    """The picture (default: the bundled scene; a bundled one by its name too) or clip, and the name of the bundled
    model that is made for it."""
    from tokenprune.media.pictures import load_image
    from tokenprune.media.video import load_video

    if video is None:
        picture = scenes.find_picture(image or scenes.IMAGE)
        return load_image(picture, max_pixels), scenes.model_for(picture)
    clip = load_video(video, frames, fps, reader, progress=progress, max_pixels=max_pixels)
    if progress:
        out.print(f"[dim]{escape(str(clip))}[/dim]", highlight=False)
    return clip, "scenes-video"
