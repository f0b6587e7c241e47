"""Which side of an operation runs: its plain PyTorch reference, or its Triton kernel."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor

from tokenprune.errors import BadInput, unknown

SWITCH = "TOKENPRUNE_KERNELS"
SIDES = ("reference", "triton")


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def side(device: str) -> str:
    """`reference` or `triton`, for tensors on a type of device ("cpu", "cuda").

    The environment variable TOKENPRUNE_KERNELS decides where it is set; else Triton runs on GPUs where it is
    installed. Raises `BadInput` for another word, and where Triton was asked for and cannot run.
    """
    asked = os.environ.get(SWITCH, "")
    if asked and asked not in SIDES:
        raise unknown(SWITCH, asked, SIDES)
    if not asked:
        return "triton" if device == "cuda" and has_triton() else "reference"
    if asked == "triton" and not has_triton():
        raise BadInput(f"{SWITCH}=triton, but Triton is not installed. Run: pip install 'tokenprune[kernels]'.")
    if asked == "triton" and device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise BadInput(
            f"{SWITCH}=triton, but the tensors are on {device!r}. Move the model to a GPU, set {SWITCH}=reference, or, "
            "to debug a kernel, set TRITON_INTERPRET=1 before Triton is imported."
        )
    return asked


def launcher(function: Callable) -> Callable:
    """Triton launches on the current device; this makes it that of the first tensor, which a model that is spread over
    several GPUs needs."""

    @wraps(function)
    def launch(x: Tensor, *arguments: Any) -> Any:
        with torch.cuda.device_of(x):
            return function(x, *arguments)

    return launch


def fused(x: Tensor) -> bool:
    """Whether the Triton kernel runs for this tensor."""
    return side(x.device.type) == "triton"
