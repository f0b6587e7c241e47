"""What a video file holds: its pictures, when each is shown and which way up, by PyAV.

A container's index tells all of it without decoding, but it may lie: AVI stores no times of showing, MPEG-PS not every
one, and a stream may begin with frames that cannot be decoded. `Opened.decoded` numbers those that really come out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tokenprune.errors import BadInput
from tokenprune.media.sniff import kind_of

# Containers that store the time of each frame, so that it is right after a jump as well.
JUMPED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
BARE = 0x80  # FFmpeg's AVFMT_NOTIMESTAMPS: an elementary stream without a container


@dataclass(frozen=True)
class Timeline:
    """Frames in the order of showing: `times` [n], ascending seconds; `stamps` [n], the time stamp that each bears.

    keys: ascending numbers of the frames that decoding may begin at beside the first.
    """

    times: np.ndarray
    stamps: Sequence[int | None]
    keys: list[int]


@dataclass(frozen=True)
class Packet:
    """What the container's index says of one frame, in ticks."""

    pts: int | None
    dts: int | None
    duration: int
    is_key: bool

    @classmethod
    def of(cls, packet: Any) -> Packet | None:
        """None for the end of the stream, and for a frame that an edit list hides."""
        if not packet.size or packet.is_discard:
            return None
        return cls(packet.pts, packet.dts, packet.duration or 0, bool(packet.is_keyframe))


class Opened:
    """A video file that PyAV reads, and its first stream of pictures that is no cover."""

    def __init__(self, path: Path) -> None:
        """Raises `BadInput` that says what the file is, where it is no video."""
        self.path, self.container = path, _open(path)
        streams, name = self.container.streams, self.container.format.name
        pictures = [s for s in streams.video if not s.disposition & type(s.disposition).attached_pic]
        if not pictures:
            kinds = ", ".join(sorted({s.type for s in streams if s.type != "video"})) or "nothing"
            held = f"no video stream, only {kinds}" + (" and a cover picture" if streams.video else "")
            raise BadInput(f"{path} has {held}. Give a video file.")
        if name.endswith("_pipe") or name == "image2":  # also of a damaged file that is named like a picture
            if kind_of(path) == "image":
                raise BadInput(f"{path} is a picture, not a video. Give it as an image.")
            raise _unreadable(path)
        self.stream: Any = pictures[0]
        self.number = self.stream.index
        codec = self.stream.codec_context
        if self.container.format.flags & BARE:
            raise BadInput(
                f"{path} is a bare stream ({self.container.format.long_name}): no container, so no times. Put it into "
                f"one, at the rate that it was made with: ffmpeg -framerate 25 -i {path.name} -c copy {path.stem}.mkv"
            )
        self.width, self.height = codec.width, codec.height
        self.packets: list[Packet] = []

    def again(self) -> Any:
        """The container, opened anew at its start, and its stream."""
        self.container.close()
        self.container = _open(self.path)
        self.stream = self.container.streams[self.number]
        return self.stream

    def by_index(self) -> Timeline | None:
        """By the container's index alone; None where it has no time of showing for each frame."""
        with self.damage_is_said():
            self.packets = [p for p in map(Packet.of, self.container.demux(self.stream)) if p is not None]
        self._refuse_cut()
        stamps = sorted({p.pts for p in self.packets if p.pts is not None})
        if not stamps or len(stamps) < len(self.packets) or self._is_shuffled():
            return None
        jumps = self.container.format.name in JUMPED
        keys = sorted(p.pts for p in self.packets if jumps and p.is_key and p.pts is not None)
        return Timeline(self._seconds(stamps), stamps, np.searchsorted(stamps, keys).tolist())

    def by_decoding(self) -> Timeline:
        """By decoding every frame; after `indexed`."""
        stream = self.again()
        with self.damage_is_said():
            stamps = [frame.pts for frame in self.container.decode(stream)]
        if not stamps:
            raise BadInput(f"{self.path} has a video stream without a single frame that can be decoded.")
        return Timeline(self._seconds(self._times_of(stamps)), stamps, [])

    def _is_shuffled(self) -> bool:
        """Whether frames are stored in another order than shown, in a container that knows the stored one alone."""
        return self.container.format.name == "avi" and bool(self.stream.codec_context.has_b_frames)

    def _times_of(self, stamps: Sequence[int | None]) -> Sequence[float]:
        """When frames that come out with these stamps are shown, in ticks."""
        if self._is_shuffled():
            slots = sorted({p.dts for p in self.packets if p.dts is not None})
            return slots if len(slots) == len(stamps) else (np.arange(len(stamps)) * self._step()).tolist()
        seen, latest = {}, -np.inf
        for number, stamp in enumerate(stamps):
            if stamp is not None and stamp < latest:
                raise BadInput(
                    f"The time stamps of {self.path} run backwards, so when its frames are shown is not known. "
                    f"Write it anew: ffmpeg -i {self.path.name} {self.path.stem}.mp4"
                )
            if stamp is not None and stamp > latest:
                seen[number] = latest = stamp
        return self._fill(seen, len(stamps))

    def _fill(self, seen: dict[int, int], count: int) -> list[float]:
        """Ticks of `count` frames, of which some are `seen`: even steps between those, and outside the frame rate."""
        every, numbers = np.arange(count), [*seen]
        if len(seen) == count:
            return [*seen.values()]
        if not seen:
            return (every * self._step()).tolist()
        ticks = np.interp(every, numbers, [*seen.values()])
        outside = np.minimum(every - numbers[0], 0) + np.maximum(every - numbers[-1], 0)
        return (ticks + self._step() * outside).tolist()

    def _step(self) -> float:
        """Ticks from one frame to the next, by the rate that the file says it has."""
        rate = self.stream.guessed_rate or self.stream.average_rate
        if not rate:
            raise BadInput(f"{self.path} says neither when its frames are shown nor how many there are in a second.")
        return float(1 / rate / self.stream.time_base)

    def _seconds(self, ticks: Sequence[float]) -> np.ndarray:
        return np.asarray(ticks, dtype=np.float64) * float(self.stream.time_base)

    def _refuse_cut(self) -> None:
        """Refuse a file whose header promises more time than there is."""
        promised = self.stream.duration
        if promised is None and len(self.container.streams) == 1 and self.container.duration:
            promised = self.container.duration / 1e6 / self.stream.time_base
        ends = sorted(p.pts + p.duration for p in self.packets if p.pts is not None)
        if not promised or not ends:
            return
        begin = self.stream.start_time or 0
        missing = begin + promised - ends[-1]
        gap = max((b - a for a, b in pairwise(ends)), default=0)
        if missing > max(2 * gap, 0.5 / self.stream.time_base):
            there, all_ = (float(x * self.stream.time_base) for x in (ends[-1] - begin, promised))
            raise BadInput(f"{self.path} is cut short: {there:.1f} of {all_:.1f} s are there. Give a complete file.")

    @contextmanager
    def damage_is_said(self) -> Iterator[None]:
        """FFmpeg's errors as `BadInput`."""
        import av

        try:
            yield
        except av.FFmpegError as error:
            raise BadInput(f"{self.path} is damaged or cut short ({error}). Give a complete video file.") from error


def _open(path: Path) -> Any:
    import av

    try:
        # Files alone: a playlist could name addresses.
        return av.open(f"file:{path}", container_options={"protocol_whitelist": "file"})
    except (av.FFmpegError, ValueError) as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> BadInput:
    return BadInput(
        f"{path} is not a video that can be read: damaged, cut short, or no video file. Give an MP4, WebM or similar."
    )


@dataclass(frozen=True)
class Turn:
    """How decoded pixels are to be laid to be upright: rows and columns swapped, then mirrored."""

    swapped: bool = False
    across: int = 1
    down: int = 1

    @classmethod
    def of(cls, frame: Any) -> Turn:
        """By a frame's display matrix: (x, y) is shown at (a x + c y, b x + d y); ISO/IEC 14496-12, 6.2.2."""
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return cls()
        a, b, _, c, d = struct.unpack("=9i", bytes(data))[:5]
        if (a == d == 0) == (b == c == 0):
            raise BadInput("The video is to be shown askew, which is not supported. Write it anew, upright.")
        across, down = (c, b) if a == d == 0 else (a, d)
        return cls(a == d == 0, 1 if across > 0 else -1, 1 if down > 0 else -1)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) of the upright picture, and of the decoded one from that of the upright."""
        return (height, width) if self.swapped else (width, height)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Upright pixels of [H, W, 3]."""
        shown = pixels.swapaxes(0, 1) if self.swapped else pixels
        return shown[:: self.down, :: self.across]
