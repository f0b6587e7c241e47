"""Opens a video for a model: picks frames and decodes just those, or says exactly why it cannot."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from tokenprune.errors import BadInput
from tokenprune.media.clip import Clip, read_counts, sample
from tokenprune.media.files import MAX_PIXELS, check_limit, existing
from tokenprune.media.readers import READERS, Misplaced, read_av, read_decord
from tokenprune.media.target import LEAST, Target
from tokenprune.media.timeline import Opened, Timeline

LONG = 64  # frames from which on decoding shows a progress bar


def load_video(
    path: str | Path,
    frames: int | None = None,
    fps: float | None = None,
    reader: str | None = None,
    progress: bool = False,
    max_pixels: int = MAX_PIXELS,
    target: Target | None = None,
) -> Clip:
    """Frames of a video, evenly spread over its time: `frames` of them (default 32), or `fps` a second.

    Time counts, not the number of the frame, so that files of variable rate are sampled evenly too. A video with fewer
    frames gives all that it has. Frames come upright, and each has been held against the time that it should have.

    reader: av (PyAV, the default) or decord, whose frames are compared with PyAV's. max_pixels: of all frames together;
    larger ones are scaled down as they are decoded, and none may have more by itself. progress: a bar for long clips.
    target: what the model's processor will resize frames to; PyAV scales those that are much larger down as it decodes.

    Raises `BadInput` for a file that is missing, empty, broken, cut short or without pictures, for one that the reader
    does not read right, and for wrong numbers.
    """
    frames, fps = read_counts(frames, fps)
    check_limit(max_pixels)
    path = existing(path, "video")
    check_reader(reader)
    opened = Opened(path)
    _check_size(path, (opened.width, opened.height), max_pixels)
    timeline = opened.by_index()
    try:
        return _clip(opened, timeline or opened.by_decoding(), frames, fps, reader, progress, max_pixels, target)
    except Misplaced:
        pass  # the index names frames that do not come out
    try:
        return _clip(opened, opened.by_decoding(), frames, fps, reader, progress, max_pixels, target)
    except Misplaced as error:
        raise BadInput(f"{path} is damaged: its frames come out in another order each time.") from error


def check_reader(name: str | None) -> None:
    """Refuse a reader that is unknown or not installed. decord alone does not do: it tells no frame's time."""
    if name is not None and name not in READERS:
        raise BadInput(f"reader={name!r} is not known. Give one of {', '.join(READERS)}.")
    missing = [shown for module, shown in (("av", "PyAV"), ("decord", "decord")) if not find_spec(module)]
    needed = [shown for shown in ("PyAV", "decord") if shown in missing and (shown == "PyAV" or name == "decord")]
    if needed:
        raise BadInput(f"Reading videos needs {' and '.join(needed)}. Install it: pip install 'tokenprune[video]'.")


def _clip(
    opened: Opened,
    timeline: Timeline,
    frames: int | None,
    fps: float | None,
    reader: str | None,
    progress: bool,
    max_pixels: int,
    target: Target | None,
) -> Clip:
    picks = sample(timeline.times, frames, fps)
    if reader == "decord" and len(picks) * opened.width * opened.height > max_pixels:
        raise BadInput(
            f"{len(picks)} frames of {opened.path} have more than max_pixels={max_pixels}, and decord, which holds "
            "many at their full size, is not used to scale them down. Leave reader= out, or give a higher max_pixels."
        )
    fit = _Fit(opened.path, len(picks), max_pixels, None if reader == "decord" else target)
    decoded: Iterable[np.ndarray] = (read_decord if reader == "decord" else read_av)(opened, timeline, picks, fit)
    if progress and len(picks) >= LONG:
        decoded = track(decoded, description="decoding", total=len(picks), transient=True)
    pictures = [Image.fromarray(np.ascontiguousarray(pixels)) for pixels in decoded]
    seconds = [float(timeline.times[i]) for i in picks]
    return Clip(pictures, seconds, len(timeline.times), picks, reader or "av", fit.first)


class _Fit:
    """The size of the first frame, less where `target` needs less, or where `count` of them have more than `max_pixels`
    all the same; the others get it too."""

    def __init__(self, path: Path, count: int, max_pixels: int, target: Target | None) -> None:
        self.path, self.count, self.max_pixels, self.target = path, count, max_pixels, target
        self.first: tuple[int, int] | None = None

    def __call__(self, size: tuple[int, int]) -> tuple[int, int]:
        _check_size(self.path, size, self.max_pixels)
        self.first = self.first or size
        needed = self.first if self.target is None else self.target.divide(self.first)
        area = math.prod(needed)
        share = self.max_pixels / (self.count * area)
        if share >= 1:
            return needed
        if share * area < LEAST:
            raise BadInput(
                f"{self.count} frames of {self.path} do not fit into {self.max_pixels} pixels at a size that shows "
                "anything. Ask for fewer with frames= or fps=, or give a higher max_pixels."
            )
        width, height = (max(1, math.floor(side * math.sqrt(share))) for side in needed)
        return width, height


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    if math.prod(size) > max_pixels:
        width, height = size
        raise BadInput(
            f"{path} has frames of {width} x {height} pixels, over the limit of {max_pixels}. Scale it down first, or "
            "give a higher max_pixels."
        )
