"""What predicts each group of a picture, where what went is replaced before it predicts others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from tokenprune_kernels.dispatch import fused

METRICS = ("max", "mean", "rmse")


def distances(a: Tensor, b: Tensor, metric: str) -> Tensor:
    """Largest difference, mean absolute difference or root mean square over the last axis."""
    difference = (a - b).abs()
    if metric == "max":
        return difference.amax(-1)
    return difference.mean(-1) if metric == "mean" else difference.square().mean(-1).sqrt()


@custom_op("tokenprune::predict_anchored", mutates_args=())
def predict_anchored(x: Tensor, tau: float, metric: str) -> Tensor:
    """int64 [S, h * w]: the group that stands for each group of pictures x, float32 [S, h, w, X] (PixelPrune).

    In raster order a group is predicted by the one on its left, or by the one above where what stands for the upper
    left is within `tau` of what stands for the left and not of what stands for the one above. Within `tau` of what
    stands for its predictor it goes, and that stands for it; else it stands for itself. metric: one of `METRICS`.
    """
    if fused(x):
        from tokenprune_kernels.fused import prediction

        return prediction.predict_anchored(x, tau, metric)
    # All groups of an anti-diagonal at once, since each depends on those of the two before alone.
    spans, h, w, values = x.shape
    flat = x.flatten(1, 2)
    stands = torch.arange(h * w, device=x.device).expand(spans, -1).clone()
    # What stands for the groups of the last diagonal and of the one before it, pixels and index: row r at r + 1.
    last, earlier = ((x.new_zeros(spans, h + 1, values), stands.new_zeros(spans, h + 1)) for _ in range(2))
    last[0][:, 1] = flat[:, 0]
    last[1][:, 1] = 0
    for diagonal in range(1, h + w - 1):
        top, end = max(0, diagonal - w + 1), min(diagonal, h - 1) + 1
        cells = slice(top * (w - 1) + diagonal, (end - 1) * (w - 1) + diagonal + 1, max(w - 1, 1))
        (pixels, index), own = last, flat[:, cells]
        pairs = pixels[:, top : end + 1].unfold(1, 2, 1).transpose(-1, -2)  # [S, m, 2, X]: above, left
        near = distances(earlier[0][:, top:end, None], pairs, metric) <= tau
        above = near[..., 1] > near[..., 0]
        if top == 0:  # the first row has none above
            above[:, 0] = False
        if end == diagonal + 1:  # the first column has none on its left
            above[:, -1] = True
        by = torch.where(above[..., None], pixels[:, top:end], pixels[:, top + 1 : end + 1])
        goes = distances(own, by, metric) <= tau
        by_index = torch.where(above, index[:, top:end], index[:, top + 1 : end + 1])
        stands[:, cells] = torch.where(goes, by_index, stands[:, cells])
        earlier[0][:, top + 1 : end + 1] = torch.where(goes[..., None], by, own)
        earlier[1][:, top + 1 : end + 1] = stands[:, cells]
        last, earlier = earlier, last
    return stands


@predict_anchored.register_fake
def _(x: Tensor, tau: float, metric: str) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1] * x.shape[2]), dtype=torch.long)
