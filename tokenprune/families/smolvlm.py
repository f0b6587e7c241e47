"""SmolVLM and Idefics3: tiles of a fixed size and the whole picture, told apart by text tokens alone."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from tokenprune.families.base import NO_CLASS_TOKEN, Span
from tokenprune.families.layout import name_marked_tiles
from tokenprune.families.square import Square


class SmolVLM(Square):
    """`SmolVLMForConditionalGeneration` and `Idefics3ForConditionalGeneration`; each tile and video frame is a span."""

    name: ClassVar[str] = "SmolVLM, Idefics3"
    model_types: ClassVar[tuple[str, ...]] = ("smolvlm", "idefics3")
    missing: ClassVar[dict[str, str]] = NO_CLASS_TOKEN

    def language_model(self, model: PreTrainedModel) -> Any:
        return self.base(model).text_model

    def side(self, model: PreTrainedModel) -> int:
        vision = model.config.vision_config
        return vision.image_size // vision.patch_size // model.config.scale_factor

    def tower(self, model: PreTrainedModel, media: str) -> Any:
        return self.base(model).vision_model

    def finish(self, model: PreTrainedModel, spans: list[Span], input_ids: Tensor) -> list[Span]:
        return name_marked_tiles(spans, input_ids)
