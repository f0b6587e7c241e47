"""Hunyuan-VL (HunyuanOCR): pictures of any size, a newline after each row, a token before and behind the picture; four
axes of positions."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import nn
from transformers import PreTrainedModel

from tokenprune.families.base import CLIP_STD, NO_CLASS_TOKEN, Encoded, Part
from tokenprune.families.raster import Raster


class HunYuanVL(Raster):
    """`HunYuanVLForConditionalGeneration`."""

    name: ClassVar[str] = "Hunyuan-VL"
    model_types: ClassVar[tuple[str, ...]] = ("hunyuan_vl",)
    pixel_std: ClassVar[tuple[float, float, float]] = CLIP_STD
    missing: ClassVar[dict[str, str]] = NO_CLASS_TOKEN | {"rope_weight": "it rotates by four axes of position ids."}
    no_stream: ClassVar[str] = (
        "numbers the rows and columns of every picture from 0 and counts the pictures, which a stream cannot follow."
    )

    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        whole = [part for parts in super().items(model, encoded) for part in parts]
        return [[replace(part, row_end=True, frame_start=True, end=1)] for part in whole]

    def encoder(self, model: PreTrainedModel, media: str) -> tuple[nn.ModuleList, int]:
        layers = self.base(model).vision_tower.layers
        return layers, len(layers) - 1
