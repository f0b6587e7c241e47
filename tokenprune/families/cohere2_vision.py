"""Cohere2 Vision (Command A Vision): tiles as in Aya Vision, a line break in the text after each."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from tokenprune.families.aya_vision import AyaVision
from tokenprune.families.base import CLIP_STD, Separator, Span
from tokenprune.families.layout import name_tiles


class Cohere2Vision(AyaVision):
    """`Cohere2VisionForConditionalGeneration`."""

    name: ClassVar[str] = "Cohere2 Vision"
    model_types: ClassVar[tuple[str, ...]] = ("cohere2_vision",)
    pixel_std: ClassVar[tuple[float, float, float]] = CLIP_STD

    def finish(self, model: PreTrainedModel, spans: list[Span], input_ids: Tensor) -> list[Span]:
        """The token between two tiles closes the first; the one after the whole picture ends it and stays."""
        return [
            replace(span, separators=(Separator(span.columns[-1] + 1, 0, span.count),)) if span.part == "tile" else span
            for span in name_tiles(spans, gap=1)
        ]
