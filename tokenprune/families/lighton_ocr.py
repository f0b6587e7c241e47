"""LightOnOCR: a Pixtral encoder whose patches are merged 2 x 2, no break between rows."""

from __future__ import annotations

from typing import ClassVar

from torch import nn
from transformers import PreTrainedModel

from tokenprune.families.mistral3 import Mistral3


class LightOnOcr(Mistral3):
    """`LightOnOcrForConditionalGeneration`."""

    name: ClassVar[str] = "LightOnOCR"
    model_types: ClassVar[tuple[str, ...]] = ("lighton_ocr",)

    def serves(self, model: PreTrainedModel) -> bool:
        return model.config.model_type in self.model_types

    def encoder(self, model: PreTrainedModel, media: str) -> tuple[nn.ModuleList, int]:
        layers = self.base(model).vision_encoder.transformer.layers
        return layers, len(layers) - 1
