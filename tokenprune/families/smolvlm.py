"""SmolVLM and Idefics3: tiles of a fixed size and the whole picture, told apart by text tokens alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from tokenprune.families.base import NO_CLASS_TOKEN, Span
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
        """A picture ends with its whole view: what stands before the last span of a row marks whole views, and every
        other mark (row 1 column 2, ...) a tile."""
        ids = input_ids.tolist()
        marks = [ids[s.row][s.columns[0] - 1] if s.columns[0] else None for s in spans]
        whole = {span.row: mark for span, mark in zip(spans, marks, strict=True)}
        tiled = {span.row for span, mark in zip(spans, marks, strict=True) if mark != whole[span.row]}
        finished, item = [], 0
        for span, mark in zip(spans, marks, strict=True):
            ends = mark == whole[span.row]
            part = "image" if span.row not in tiled else "base" if ends else "tile"
            finished.append(replace(span, part=part, item=item))
            item += ends
        return finished
