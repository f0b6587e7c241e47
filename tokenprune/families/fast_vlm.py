"""FastVLM: a hybrid convolutional encoder whose last feature map gives the tokens."""

from __future__ import annotations

from typing import ClassVar

from transformers import PreTrainedModel

from tokenprune.families.base import ENCODER_SIGNALS, Encoded, Family, Part, without


class FastVlm(Family):
    """`FastVlmForConditionalGeneration`; the encoder comes from timm."""

    name: ClassVar[str] = "FastVLM"
    model_types: ClassVar[tuple[str, ...]] = ("fast_vlm",)
    missing: ClassVar[dict[str, str]] = without(
        "its vision encoder is mostly convolutions and computes its attention inside timm.", *ENCODER_SIGNALS
    )

    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        images = len(encoded.pixels)
        side = int((encoded.features // images) ** 0.5)
        return [[Part((1, side, side))] for _ in range(images)]
