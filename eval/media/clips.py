"""Clips of numbered frames in every container and codec that PyAV can write here, and clips as people have them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from eval.media.numbered import frame

COUNT = 60
# File ending -> codecs. MPEG knows few rates, so that all of those clips have 25 frames a second, and the others 10.
WRITTEN = {
    "mp4": ("libx264", "libx265", "mpeg4", "libsvtav1", "libvpx-vp9"),
    "mov": ("libx264", "prores_ks", "mjpeg", "qtrle"),
    "m4v": ("mpeg4",),
    "3gp": ("mpeg4",),
    "mkv": ("libx264", "libvpx", "ffv1", "mpeg2video"),
    "webm": ("libvpx", "libvpx-vp9", "libsvtav1"),
    "avi": ("mpeg4", "mjpeg", "libx264", "ffv1", "cinepak"),
    "ts": ("libx264", "libx265", "mpeg2video"),
    "m2ts": ("libx264",),
    "mpg": ("mpeg1video", "mpeg2video"),
    "vob": ("mpeg2video",),
    "wmv": ("wmv2",),
    "asf": ("msmpeg4",),
    "flv": ("flv", "libx264"),
    "ogv": ("libvpx",),
    "gif": ("gif",),
    "apng": ("apng",),
    "mxf": ("mpeg2video",),
    "nut": ("libx264",),
    "ivf": ("libvpx",),
    "y4m": ("wrapped_avframe",),
    "h264": ("libx264",),
    "hevc": ("libx265",),
    "m1v": ("mpeg1video",),
    "mjpeg": ("mjpeg",),
}
FORMATS = {"gif": "rgb8", "apng": "rgb24", "prores_ks": "yuv422p10le", "mjpeg": "yuvj420p", "qtrle": "rgb24"}
FORMATS |= {"cinepak": "rgb24"}
MPEG = ("mpeg1video", "mpeg2video")
REORDERED = (*MPEG, "libx264", "libx265", "mpeg4")
QUIET = {"libx265": {"x265-params": "log-level=none"}}
# Quarter turns and mirrors, as (a, b, c, d) of a display matrix.
TURNS = {
    "upright": (1, 0, 0, 1),
    "left": (0, -1, 1, 0),
    "half": (-1, 0, 0, -1),
    "right": (0, 1, -1, 0),
    "mirrored": (-1, 0, 0, 1),
    "flipped": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transversed": (0, -1, -1, 0),
}


def store(shown: np.ndarray, turn: str | None) -> np.ndarray:
    """Pixels [H, W, 3] that a display matrix turns into `shown`, pixel by pixel as the standard says it."""
    a, b, c, d = TURNS[turn or "upright"]
    size = shown.shape[:2] if b == c == 0 else shown.shape[1::-1]
    y, x = np.indices(size)
    across, down = a * x + c * y, b * x + d * y
    return shown[down - down.min(), across - across.min()]


def rate_of(codec: str) -> int:
    """Frames a second of a written clip."""
    return 25 if codec in MPEG else 10


def write(
    path: Path,
    codec: str,
    *,
    count: int = COUNT,
    ticks: Callable[[int], int] = lambda i: i,
    turn: str | None = None,
    scale: int = 1,
    **options: Any,
) -> Path:
    """Frames 0 to `count` - 1; ticks: when each is shown, in frame times; turn: a display matrix of `TURNS`."""
    rate = rate_of(codec)
    with av.open(str(path), "w", **options) as out:
        stream = out.add_stream(codec, rate=rate, options=QUIET.get(codec, {}))
        stream.height, stream.width = store(frame(0, scale), turn).shape[:2]
        stream.pix_fmt = FORMATS.get(codec, "yuv420p")
        stream.gop_size = 12
        stream.codec_context.thread_count = 1  # two threads of libvpx wait for each other for ever, once in a while
        stream.codec_context.max_b_frames = 2 if codec in REORDERED else 0
        if codec not in ("libx264", "libx265", "libsvtav1"):
            stream.bit_rate = 400_000
        if turn is not None:
            a, b, c, d = (x << 16 for x in TURNS[turn])
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for i in range(count):
            drawn = av.VideoFrame.from_ndarray(store(frame(i, scale), turn), format="rgb24")
            drawn = drawn.reformat(format=stream.pix_fmt)
            drawn.pts, drawn.time_base = ticks(i), Fraction(1, rate)
            out.mux(stream.encode(drawn))
        out.mux(stream.encode())
    return path


def cut(source: Path, path: Path, first: int, hidden: int = 0) -> Path:
    """What a lossless cutter writes: the packets from the key frame at number `first` on, shown from `hidden` later on.

    MP4 and MOV hide the frames before by an edit list; Matroska gives them times below 0.
    """
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(source)) as given, av.open(str(path), "w", options=options) as out:
        stream = given.streams.video[0]
        copied = out.add_stream_from_template(stream)
        tick = Fraction(1, 10) / stream.time_base
        for packet in given.demux(stream):
            if packet.dts is None or packet.pts < first * tick:
                continue
            packet.pts -= int((first + hidden) * tick)
            packet.dts -= int((first + hidden) * tick)
            packet.stream = copied
            out.mux(packet)
    return path
