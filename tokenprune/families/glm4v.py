"""GLM-4V: built like Qwen2-VL, with timestamps between frames and image placeholders for videos too."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from tokenprune.families.qwen2_vl import Qwen2VL


class Glm4V(Qwen2VL):
    """`Glm4vForConditionalGeneration` (GLM-4.1V), `Glm4vMoeForConditionalGeneration` (GLM-4.5V), GLM-4.6V, GLM-OCR."""

    name: ClassVar[str] = "GLM-4V"
    model_types: ClassVar[tuple[str, ...]] = ("glm4v", "glm4v_moe", "glm46v", "glm_ocr", "glmga")

    def placeholders(self, model: PreTrainedModel) -> dict[str, int]:
        return dict.fromkeys(self.getters, model.config.image_token_id)

    def exits(self, visual: Any) -> tuple[nn.Module, ...]:
        """A convolution follows the blocks, which takes all patches."""
        return ()
