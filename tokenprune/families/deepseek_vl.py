"""DeepSeek-VL: a square of patches for each picture, from SigLIP."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedModel

from tokenprune.families.base import CLIP_STD, NO_CLASS_TOKEN
from tokenprune.families.square import Square


class DeepseekVL(Square):
    """`DeepseekVLForConditionalGeneration`. The hybrid form mixes two encoders and is not served by this."""

    name: ClassVar[str] = "DeepSeek-VL"
    model_types: ClassVar[tuple[str, ...]] = ("deepseek_vl",)
    pixel_std: ClassVar[tuple[float, float, float]] = CLIP_STD
    missing: ClassVar[dict[str, str]] = NO_CLASS_TOKEN

    def tower(self, model: PreTrainedModel, media: str) -> Any:
        return self.base(model).vision_model
