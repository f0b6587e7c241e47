"""Writes the demo clip beside the bundled video model: `python -m eval.clips.picture`."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from eval.clips.judge import FPS
from eval.clips.world import make_clip, rng_for
from tokenprune import scenes

CLIP = 7
SCALE = 2


def main() -> None:
    """Write `clip.mp4`: an MP4 of two times the size that the model sees."""
    clip = make_clip(rng_for("demo", CLIP))
    with av.open(str(scenes.VIDEO), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(FPS), options={"crf": "20", "preset": "veryslow"})
        stream.height, stream.width = (SCALE * side for side in clip.pixels.shape[1:3])
        stream.pix_fmt = "yuv444p"
        for frame in clip.pixels:
            large = np.kron(frame, np.ones((SCALE, SCALE, 1), np.uint8))
            out.mux(stream.encode(av.VideoFrame.from_ndarray(large, format="rgb24")))
        out.mux(stream.encode())


if __name__ == "__main__":
    main()
