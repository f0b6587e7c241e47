"""Frames that carry their own number and say which way up they are, as blocks that survive compression."""

from __future__ import annotations

import numpy as np

BLOCK = 16  # pixels: one macroblock, so that blocks do not blur into each other
ROWS, COLUMNS = 4, 6
LARGEST = 63
_BITS = [(row, column) for row in (1, 2) for column in (1, 2, 3, 4)]


def frame(number: int, scale: int = 1) -> np.ndarray:
    """uint8 [64, 96, 3] times `scale`: six bits of the number, two of a checksum, and marks in the upper left."""
    if not 0 <= number <= LARGEST:
        raise ValueError(f"number={number} does not fit into six bits.")
    blocks = np.zeros((ROWS, COLUMNS), np.uint8)
    blocks[0, 0], blocks[0, 1] = 255, 128
    code = number << 2 | number.bit_count() % 4
    for place, (row, column) in enumerate(_BITS):
        blocks[row, column] = 255 * (code >> place & 1)
    return np.repeat(np.kron(blocks, np.ones((BLOCK * scale,) * 2, np.uint8))[..., None], 3, 2)


def read(pixels: np.ndarray) -> tuple[int | None, int | None]:
    """The number that is drawn in uint8 [H, W, 3], and how the picture lies: 0 upright, else one of `TURNS`.

    None, None: neither can be read, as in a damaged picture.
    """
    found = [(turn, _code(turn_frame(pixels, turn))) for turn in range(8)]
    read_as = [(number, turn) for turn, number in found if number is not None]
    return read_as[0] if len(read_as) == 1 else (None, None)


def turn_frame(pixels: np.ndarray, turn: int) -> np.ndarray:
    """The picture after `turn % 4` quarter turns to the left, and from 4 on mirrored left to right as well."""
    quarter = np.rot90(pixels, turn % 4)
    return quarter[:, ::-1] if turn >= 4 else quarter


def _code(pixels: np.ndarray) -> int | None:
    height, width = pixels.shape[:2]
    if height * COLUMNS != width * ROWS:
        return None
    middles = pixels[height // 8 :: height // 4, width // 12 :: width // 6].mean(2)
    if not (middles[0, 0] > 190 and 64 < middles[0, 1] < 190 and max(middles[0, -1], *middles[-1, [0, -1]]) < 64):
        return None
    bits = [middles[place] > 127 for place in _BITS]
    code = sum(int(bit) << place for place, bit in enumerate(bits))
    return code >> 2 if (code >> 2).bit_count() % 4 == code & 3 else None
