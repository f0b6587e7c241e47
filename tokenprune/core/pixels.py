"""What pixels tell about a patch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 256
RANGE = (-3.0, 3.0)  # beyond what any processor's mean and spread give


def grey_entropy(patches: Tensor) -> Tensor:
    """Entropy in bits of the 256-bin histogram of grey values of each patch; float32 [N, patches].

    patches: float [N, patches, 3, pixels] as the processor normalised them. The bins are fixed, so that a patch counts
    the same in every batch. (VFlowOpt's code casts values below 0 to bytes, which wraps.)
    """
    low, high = RANGE
    level = ((patches.float().mean(2) - low) / (high - low) * (BINS - 1)).round().clamp(0, BINS - 1).long()
    counts = torch.zeros(*level.shape[:2], BINS, device=level.device)
    share = counts.scatter_add(2, level, torch.ones_like(level, dtype=counts.dtype)) / level.shape[2]
    return -torch.xlogy(share, share).sum(-1) / math.log(2)
