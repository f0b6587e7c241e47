"""The size that a processor gives the frames of a video, whatever size they come in."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

SPARE = 2  # times the target that a side keeps: a second resize on top of that is not seen
LEAST = 2**16  # pixels that a frame keeps for people to look at: 256 x 256


@dataclass(frozen=True)
class Target:
    """What frames are resized to: sides of at most `side`, or at most `pixels` in all; 0 for the one that is not said.

    Of a video that shares a budget among its frames, `pixels` is the budget: more than each gets.
    """

    side: int = 0
    pixels: int = 0

    @classmethod
    def of(cls, processor: Any) -> Target | None:
        """None where the settings of the processor's videos say no size, or one that depends on the frame's own."""
        videos = getattr(processor, "video_processor", None)
        if videos is None or not videos.do_resize:
            return None
        size = {name: value for name, value in dict(videos.size).items() if value}
        if size.keys() == {"height", "width"}:
            return cls(side=max(size.values()))
        if size.keys() == {"shortest_edge"}:
            return cls(side=size["shortest_edge"])
        if size.keys() == {"shortest_edge", "longest_edge"} and hasattr(videos, "merge_size"):  # pixels, as Qwen has it
            return cls(pixels=size["longest_edge"])
        return None

    def divide(self, size: tuple[int, int]) -> tuple[int, int]:
        """A (width, height) by the largest whole number that divides both and leaves `SPARE` times the target.

        The shape stays exactly, and with it what the processor makes of it.
        """
        width, height = size
        for by in range(gcd(width, height), 1, -1):
            w, h = width // by, height // by
            if (
                width % by == height % by == 0
                and min(w, h) >= SPARE * self.side
                and w * h >= max(SPARE**2 * self.pixels, LEAST)
            ):
                return w, h
        return size
