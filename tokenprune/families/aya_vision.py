"""Aya Vision: tiles of a fixed size behind marks of their own, merged by pixel shuffle, and the whole picture."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from tokenprune.families.base import NO_CLASS_TOKEN, Span
from tokenprune.families.layout import name_marked_tiles
from tokenprune.families.square import Square, patches_of


class AyaVision(Square):
    """`AyaVisionForConditionalGeneration`; each tile is a span, and how tiles lie beside each other is not known."""

    name: ClassVar[str] = "Aya Vision"
    model_types: ClassVar[tuple[str, ...]] = ("aya_vision",)
    missing: ClassVar[dict[str, str]] = NO_CLASS_TOKEN

    def side(self, model: PreTrainedModel) -> int:
        return patches_of(model) // model.config.downsample_factor

    def finish(self, model: PreTrainedModel, spans: list[Span], input_ids: Tensor) -> list[Span]:
        return name_marked_tiles(spans, input_ids)
