"""Frames of a video, and which of them are taken."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from PIL import Image

from tokenprune.errors import BadInput

DEFAULT_FRAMES = 32


@dataclass(frozen=True)
class Clip:
    """Sampled frames as 8-bit RGB, the second each is shown at, and how many frames the file has.

    seconds: the file's own time stamps. numbers: of the frames in the order of showing, from 0. reader: what decoded
    them. size: (width, height) of the upright frames in the file, which may be larger than those here.
    """

    frames: list[Image.Image]
    seconds: list[float]
    total: int
    numbers: list[int] = field(default_factory=list)
    reader: str = ""
    size: tuple[int, int] | None = None

    @property
    def fps(self) -> float:
        """Sampled frames per second, on average; 1 for a single frame."""
        span = self.seconds[-1] - self.seconds[0]
        return (len(self.seconds) - 1) / span if span > 0 else 1.0

    def __str__(self) -> str:
        text = f"{len(self.frames)} of {self.total} frames, {self.seconds[0]:.2f} to {self.seconds[-1]:.2f} s"
        if self.reader:
            text += f", read by {self.reader}"
        if self.size not in (None, self.frames[0].size):
            text += ", scaled from {} x {} to {} x {}".format(*self.size, *self.frames[0].size)
        return text


def read_counts(frames: Any, fps: object) -> tuple[int | None, float | None]:
    """The two as plain numbers, of which one is None; neither given: `DEFAULT_FRAMES` frames."""
    if frames is not None and fps is not None:
        raise BadInput("Give frames= or fps=, not both.")
    if fps is not None:
        if isinstance(fps, bool | np.bool_) or not isinstance(fps, Real) or not 0 < float(fps) < math.inf:
            raise BadInput(f"fps={fps!r} must be a finite number above 0.")
        return None, float(fps)
    if frames is None:
        return DEFAULT_FRAMES, None
    try:
        count = 0 if isinstance(frames, bool) else operator.index(frames)
    except TypeError:
        count = 0
    if count < 1:
        raise BadInput(f"frames={frames!r} must be a whole number from 1 on.")
    return count, None


def sample(times: np.ndarray, frames: int | None, fps: float | None = None) -> list[int]:
    """Numbers of the frames nearest to evenly spread moments; `times` [n] are ascending seconds.

    frames: this many, from the first to the last. fps: one every 1 / fps seconds from the first on. Neither: all.
    """
    length = times[-1] - times[0]
    count = len(times) if frames is None else frames
    if fps is not None:
        count = int(min((length + 1e-6) * fps, len(times))) + 1
    if count >= len(times):
        return list(range(len(times)))
    wanted = times[0] + (np.linspace(0, length, count) if fps is None else np.arange(count) / fps)
    after = np.searchsorted(times, wanted).clip(1, len(times) - 1)
    nearest = np.where(wanted - times[after - 1] <= times[after] - wanted, after - 1, after)
    return np.unique(nearest).tolist()
