"""How the tiles of a picture lie on its base image."""

from __future__ import annotations

import torch
from torch import Tensor

Grids = tuple[tuple[int, int, int], ...]


def layout(grids: Grids) -> tuple[int, int]:
    """Rows and columns of tiles. grids: of the base image, then of each tile, or of one grid that joins them all.

    Tiles given one by one are taken to form the squarest rectangle.
    """
    (_, height, width), *rest = grids
    if len(rest) == 1:
        return -(-rest[0][1] // height), -(-rest[0][2] // width)
    rows = int(len(rest) ** 0.5)
    while len(rest) % rows:
        rows -= 1
    return rows, len(rest) // rows


def tile_numbers(grids: Grids, part: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """int64 like `part`: 0 for the base image, 1 ... for the tiles in raster order.

    A grid that joins all tiles is cut at the base image's size; margins that were cut off it were cut off evenly.
    """
    if len(grids) > 2:
        return part
    (_, h, w), (_, height, width) = grids
    rows, columns = layout(grids)
    top, left = (rows * h - height) // 2, (columns * w - width) // 2
    tile = (row + top) // h * columns + (column + left) // w + 1
    return torch.where(part == 0, 0, tile)


def tile_shown(grids: Grids, row: Tensor, column: Tensor) -> Tensor:
    """int64: for tokens of the base image, which tile (0 ...) shows the same place at a higher resolution."""
    rows, columns = layout(grids)
    _, height, width = grids[0]
    return (row * rows // height).clamp(max=rows - 1) * columns + (column * columns // width).clamp(max=columns - 1)
