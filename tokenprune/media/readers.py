"""Decodes chosen frames of a video. Every frame is held against the moment that was asked for; no seek is trusted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from tokenprune.errors import BadInput
from tokenprune.media.timeline import Opened, Timeline, Turn

READERS = ("av", "decord")
SIDE = 32  # of the thumbnails in which two readers are compared
ALIKE = 8.0  # of 255: the most that a pixel of the thumbnails may differ


Fit = Callable[[tuple[int, int]], tuple[int, int]]


class Misplaced(Exception):
    """The frames that come out are not those of the timeline."""


def read_av(opened: Opened, timeline: Timeline, picks: list[int], fit: Fit) -> Iterator[np.ndarray]:
    """Frames by PyAV, ascending `picks` of the timeline, as uint8 [H, W, 3], upright.

    fit: gives the (width, height) that a frame of a (width, height) is scaled to while it is converted.

    Raises `Misplaced` where frames do not come out under the time stamps that they should have.
    """
    forward = _Forward(opened, timeline)
    turns: dict[int, Turn] = {}
    for pick in picks:
        frame = forward.to(pick)
        if frame.rotation not in turns:  # looked at once: a frame whose side data were seen is freed late
            turns[frame.rotation] = Turn.of(frame)
        turn = turns[frame.rotation]
        width, height = turn.size(*fit(turn.size(frame.width, frame.height)))
        yield turn.apply(_scale(frame, width, height))


def _scale(frame: Any, width: int, height: int) -> np.ndarray:
    return frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()


class _Forward:
    """Goes through a stream, by jumps to key frames where the timeline has them.

    Frames are counted, and each has to bear the stamp of its number. Where one does not after a jump, the file is read
    from its start instead.
    """

    def __init__(self, opened: Opened, timeline: Timeline) -> None:
        self.opened, self.stamps, self.keys = opened, timeline.stamps, timeline.keys
        self._start()

    def _start(self) -> None:
        stream = self.opened.again()
        self.frames = self.opened.container.decode(stream)
        self.number, self.jumped = -1, False

    def to(self, pick: int) -> Any:
        """The frame of this number, which is above the last one's."""
        self._jump(pick)
        frame = self._count(pick)
        if frame is None and self.jumped:
            self.keys = []
            self._start()
            frame = self._count(pick)
        if frame is None:
            raise Misplaced
        if frame.is_corrupt:
            raise BadInput(f"Frame {pick} of {self.opened.path} is damaged. Give a complete video file.")
        return frame

    def _jump(self, pick: int) -> None:
        """To the last key frame up to `pick`, if there is one after the next frame."""
        import av

        before = bisect_right(self.keys, pick)
        if not before or self.keys[before - 1] <= self.number + 1:
            return
        key = self.keys[before - 1]
        with self.opened.damage_is_said():
            self.opened.container.seek(self.stamps[key], stream=self.opened.stream)
        decoded = self.opened.container.decode(self.opened.stream)
        try:
            first = next((f for f in decoded if f.pts is not None and f.pts >= self.stamps[key]), None)
        except av.FFmpegError:  # the jump led into frames that need what lies before
            first = None
        self.number, self.jumped = key - 1, True
        # A container may call a frame a key that is none; the codec knows.
        self.frames = chain([first], decoded) if first is not None and first.key_frame else iter(())

    def _count(self, pick: int) -> Any | None:
        """The frame of this number; None where another one comes out on the way."""
        with self.opened.damage_is_said():
            for frame in self.frames:
                self.number += 1
                if frame.pts != self.stamps[self.number] or (self.jumped and frame.is_corrupt):
                    return None
                if self.number == pick:
                    return frame
        return None


def read_decord(opened: Opened, timeline: Timeline, picks: list[int], fit: Fit) -> Iterator[np.ndarray]:
    """Frames by decord, as `read_av` gives them.

    decord does not tell the time of what it decoded, so each frame is held against PyAV's. Raises `BadInput` where they
    differ: decord 0.6 jumps wrongly in MPEG-TS and WMV, counts the frames that an edit list hides, and knows no AV1.
    """
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    refused = f"decord does not read {opened.path} right ({{}}). Leave reader= out, or give reader='av'."
    try:
        video = decord.VideoReader(str(opened.path), num_threads=1)
    except (RuntimeError, decord.DECORDError) as error:
        raise BadInput(refused.format("it cannot open it")) from error
    if len(video) != len(timeline.times):
        raise BadInput(refused.format(f"it counts {len(video)} frames, and there are {len(timeline.times)}"))
    for pick, expected in zip(picks, read_av(opened, timeline, picks, fit), strict=True):
        try:
            found = video[pick].asnumpy()
        except (RuntimeError, decord.DECORDError) as error:
            raise BadInput(refused.format(f"it cannot decode frame {pick}")) from error
        if found.shape != expected.shape or difference(found, expected) > ALIKE:
            raise BadInput(refused.format(f"frame {pick} is another picture"))
        yield found


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """How far two pictures [H, W, 3] are apart, 0 to 255, in the place where they differ most."""
    first, second = (_means(_means(x, 0), 1) for x in (a, b))
    return float(np.abs(first - second).max())


def _means(pixels: np.ndarray, axis: int) -> np.ndarray:
    """`pixels` with one axis averaged over at most SIDE stretches."""
    starts = np.linspace(0, pixels.shape[axis], min(SIDE, pixels.shape[axis]), endpoint=False).astype(int)
    counts = np.diff([*starts, pixels.shape[axis]]).reshape([-1 if i == axis else 1 for i in range(3)])
    return np.add.reduceat(pixels.astype(np.float32), starts, axis=axis) / counts
