"""Inputs and outputs of the published implementations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


def load(name):
    data = np.load(GOLDEN / f"{name}.npz")
    return {k: torch.from_numpy(v) if v.ndim and v.dtype.kind in "fibu" else v for k, v in data.items()}


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found.float(), expected.float(), atol=atol, rtol=0)
