"""Clips as files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from eval.worlds.clips.world import FPS


def write_video(path: Path, frames: np.ndarray, codec: str, pixels: str, **options: str) -> None:
    """Frames uint8 [n, H, W, 3] as an MP4 of `FPS`; pixels: its pixel format; options: of the codec."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=Fraction(FPS), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
