"""PerceptionLM: tiles or frames of a timm encoder, pooled to squares."""

from __future__ import annotations

from typing import ClassVar

from transformers import PreTrainedModel

from tokenprune.families.base import ENCODER_SIGNALS, Encoded, Family, Part, without


class PerceptionLM(Family):
    """`PerceptionLMForConditionalGeneration`. How tiles lie beside each other is not passed to the model."""

    name: ClassVar[str] = "PerceptionLM"
    model_types: ClassVar[tuple[str, ...]] = ("perception_lm",)
    missing: ClassVar[dict[str, str]] = without("its vision encoder computes attention inside timm.", *ENCODER_SIGNALS)

    @property
    def media(self) -> tuple[str, ...]:
        return ("image", "video")

    def placeholders(self, model: PreTrainedModel) -> dict[str, int]:
        return {"image": model.config.image_token_id, "video": model.config.video_token_id}

    def media_of(self, encoded: list[str], present: list[str]) -> list[str]:
        """One getter serves both: images first, then videos."""
        return present[: len(encoded)]

    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        samples, squares = encoded.pixels.shape[:2]
        side = int((encoded.features // (samples * squares)) ** 0.5)
        part = Part((1, side, side), "tile" if squares > 1 else "image")
        return [[part] for _ in range(samples * squares)]
