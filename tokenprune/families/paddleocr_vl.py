"""PaddleOCR-VL: pages of any size, patches in raster order, merged 2 x 2 behind the encoder; M-RoPE positions."""

from __future__ import annotations

from typing import ClassVar

from torch import nn
from transformers import PreTrainedModel

from tokenprune.families.base import CLIP_STD, NO_CLASS_TOKEN, THREE_AXES, encoder_layers
from tokenprune.families.raster import Raster


class PaddleOcrVL(Raster):
    """`PaddleOCRVLForConditionalGeneration`."""

    name: ClassVar[str] = "PaddleOCR-VL"
    model_types: ClassVar[tuple[str, ...]] = ("paddleocr_vl",)
    pixel_std: ClassVar[tuple[float, float, float]] = CLIP_STD
    missing: ClassVar[dict[str, str]] = NO_CLASS_TOKEN | THREE_AXES

    def encoder(self, model: PreTrainedModel, media: str) -> tuple[nn.ModuleList, int]:
        layers = encoder_layers(self.base(model).visual)
        return layers, len(layers) - 1
