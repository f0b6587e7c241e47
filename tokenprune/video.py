"""Opens a video for a model: picks frames and decodes just those, or says exactly why it cannot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from tokenprune.errors import BadInput

LONG = 64  # frames from which on decoding shows a progress bar
CHUNK = 8
READERS = ("decord", "av")


@dataclass(frozen=True)
class Clip:
    """Sampled frames as 8-bit RGB, the second each is shown at, and how many frames the file has."""

    frames: list[Image.Image]
    seconds: list[float]
    total: int

    @property
    def fps(self) -> float:
        """Sampled frames per second, on average; 1 for a single frame."""
        span = self.seconds[-1] - self.seconds[0]
        return (len(self.seconds) - 1) / span if span > 0 else 1.0


def load_video(
    path: str | Path,
    frames: int | None = None,
    fps: float | None = None,
    reader: str | None = None,
    progress: bool = False,
) -> Clip:
    """Frames of a video, evenly spread over its time: `frames` of them (default 32), or `fps` a second.

    Time counts, not the number of the frame, so that files of variable rate are sampled evenly too. A video with fewer
    frames gives all that it has. reader: decord or av (PyAV); default: decord where it is installed, else PyAV.
    progress: show a bar for long clips.

    Raises `BadInput` for a file that is missing, empty, broken, cut short or without pictures, and for wrong numbers.
    """
    path = Path(path)
    if frames is not None and fps is not None:
        raise BadInput("Give frames= or fps=, not both.")
    if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
        raise BadInput(f"frames={frames!r} must be a whole number from 1 on.")
    if fps is not None and not fps > 0:
        raise BadInput(f"fps={fps!r} must be above 0.")
    if not path.exists():
        raise BadInput(f"There is no video at {path}.")
    if path.is_dir():
        raise BadInput(f"{path} is a folder. Give one video file.")
    if path.stat().st_size == 0:
        raise BadInput(f"{path} is empty (0 bytes). Give a video file.")
    source = _reader(reader)(path)
    times = source.times()
    if not len(times):
        raise BadInput(f"{path} has a video stream without a single frame.")
    picks = sample(times, 32 if frames is None and fps is None else frames, fps)
    decoded = source.decode(picks)
    if progress and len(picks) >= LONG:
        decoded = track(decoded, description="decoding", total=len(picks), transient=True)
    pictures = [Image.fromarray(frame) for frame in decoded]
    if len(pictures) < len(picks):
        raise BadInput(f"{path} is cut short: {len(pictures)} of {len(picks)} frames could be decoded.")
    return Clip(pictures, [float(times[i]) for i in picks], len(times))


def sample(times: np.ndarray, frames: int | None, fps: float | None = None) -> list[int]:
    """Numbers of the frames nearest to evenly spread moments; `times` [n] are ascending seconds.

    frames: this many, from the first to the last. fps: one every 1 / fps seconds from the first on.
    """
    if frames is not None:
        wanted = np.linspace(times[0], times[-1], frames) if frames > 1 else times[:1]
    else:
        wanted = np.arange(times[0], times[-1] + 1e-6, 1 / fps)
    if len(wanted) >= len(times):
        return list(range(len(times)))
    after = np.searchsorted(times, wanted).clip(1, len(times) - 1) if len(times) > 1 else np.zeros(len(wanted), int)
    before = after - 1 if len(times) > 1 else after
    nearest = np.where(wanted - times[before] <= times[after] - wanted, before, after)
    return np.unique(nearest).tolist()


class Reader(ABC):
    """An open video file."""

    @abstractmethod
    def __init__(self, path: Path) -> None: ...

    @abstractmethod
    def times(self) -> np.ndarray:
        """The second at which each frame is shown, ascending float64 [n]."""

    @abstractmethod
    def decode(self, picks: list[int]) -> Iterator[np.ndarray]:
        """These frames, ascending, as uint8 [H, W, 3]."""


class DecordReader(Reader):
    """By decord: jumps to the frames it needs."""

    def __init__(self, path: Path) -> None:
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        self.path = path
        try:
            self.video = decord.VideoReader(str(path), num_threads=1)
        except (RuntimeError, decord.DECORDError) as error:
            raise BadInput(_unreadable(path)) from error

    def times(self) -> np.ndarray:
        if not len(self.video):
            return np.empty(0)
        return np.sort(self.video.get_frame_timestamp(range(len(self.video)))[:, 0].astype(np.float64))

    def decode(self, picks: list[int]) -> Iterator[np.ndarray]:
        import decord

        for start in range(0, len(picks), CHUNK):
            try:
                yield from self.video.get_batch(picks[start : start + CHUNK]).asnumpy()
            except (RuntimeError, decord.DECORDError) as error:
                raise BadInput(f"{self.path} is damaged or cut short: not every frame can be decoded.") from error


class PyavReader(Reader):
    """By PyAV: reads the file from its start to the last frame it needs."""

    def __init__(self, path: Path) -> None:
        import av

        self.path = path
        try:
            self.container = av.open(str(path))
        except av.FFmpegError as error:
            raise BadInput(_unreadable(path)) from error
        if not self.container.streams.video:
            raise BadInput(f"{path} has no video stream, only {_kinds(self.container)}. Give a video file.")
        self.stream: Any = self.container.streams.video[0]

    def times(self) -> np.ndarray:
        import av

        try:
            stamps = [p.pts for p in self.container.demux(self.stream) if p.pts is not None and p.size]
        except av.FFmpegError as error:
            raise BadInput(f"{self.path} is damaged or cut short ({error}). Give a complete video file.") from error
        return np.sort(np.array(stamps, dtype=np.float64)) * float(self.stream.time_base)

    def decode(self, picks: list[int]) -> Iterator[np.ndarray]:
        import av

        self.container.seek(0)
        wanted = set(picks)
        try:
            for number, frame in enumerate(self.container.decode(self.stream)):
                if number in wanted:
                    yield frame.to_ndarray(format="rgb24")
                if number >= picks[-1]:
                    return
        except av.FFmpegError as error:
            raise BadInput(f"{self.path} is damaged or cut short ({error}). Give a complete video file.") from error


def _reader(name: str | None) -> type[Reader]:
    installed = [module for module in READERS if find_spec(module)]
    if name is not None and name not in READERS:
        raise BadInput(f"reader={name!r} is not known. Give one of {', '.join(READERS)}.")
    if not installed or (name and name not in installed):
        raise BadInput(f"Reading videos needs {name or 'decord or PyAV'}. Install it: pip install 'tokenprune[video]'.")
    return DecordReader if (name or installed[0]) == "decord" else PyavReader


def _unreadable(path: Path) -> str:
    """Why a file is no video, as far as can be told."""
    if find_spec("av"):
        import av

        try:
            with av.open(str(path)) as container:
                if not container.streams.video:
                    return f"{path} has no video stream, only {_kinds(container)}. Give a video file."
        except av.FFmpegError:
            pass  # not even a container
    return (
        f"{path} is not a video that can be read: damaged, cut short, or no video file. Give an MP4, WebM or similar."
    )


def _kinds(container: Any) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
