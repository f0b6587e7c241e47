"""Lets torchvision, which timm imports, load beside a torch of another build. Imported before transformers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_operators() -> torch.library.Library | None:
    """The operators that torchvision speaks of when imported, where its library for CUDA cannot load to bring them.

    They are names without kernels: no model of ours computes boxes. What is returned has to be kept.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None or torch.version.cuda is not None:
        return None
    if "+cpu" in Path(spec.origin).with_name("version.py").read_text():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + BOXES)
    return library
