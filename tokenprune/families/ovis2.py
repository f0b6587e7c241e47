"""Ovis2: the whole picture and then its tiles, with a token between any two; a visual vocabulary gives the features."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tokenprune.families.base import CLIP_STD, NO_CLASS_TOKEN, Encoded, Span
from tokenprune.families.layout import name_tiles
from tokenprune.families.square import Square, flat_map, patch_maps, patches_of


class Ovis2(Square):
    """`Ovis2ForConditionalGeneration`. The tokens that say how tiles lie (end of a column, of a row) are text."""

    name: ClassVar[str] = "Ovis2"
    model_types: ClassVar[tuple[str, ...]] = ("ovis2",)
    pixel_std: ClassVar[tuple[float, float, float]] = CLIP_STD
    missing: ClassVar[dict[str, str]] = NO_CLASS_TOKEN

    def side(self, model: PreTrainedModel) -> int:
        return -(-patches_of(model) // model.config.vision_config.hidden_stride)

    def finish(self, model: PreTrainedModel, spans: list[Span], input_ids: Tensor) -> list[Span]:
        return name_tiles(spans, gap=1, base=0)

    def pool_patches(self, model: PreTrainedModel, encoded: Encoded, calls: list[Tensor]) -> list[list[Tensor]]:
        """At the lower and right edge a token may have fewer patches; the model fills it up with zeros."""
        pooled = functional.avg_pool2d(patch_maps(calls), model.config.vision_config.hidden_stride, ceil_mode=True)
        return [[flat_map(image)] for image in pooled]
