"""InternVL: tiles of a fixed size, four patches to a token by pixel shuffle, the whole picture as the last tile."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenprune.families.base import IMAGENET_STD, Span, encoder_layers, feature_layer
from tokenprune.families.layout import name_tiles
from tokenprune.families.square import Square


class InternVL(Square):
    """`InternVLForConditionalGeneration`. Video frames come as images; each tile and each frame is a span.

    How tiles lie beside each other is not passed to the model, so a tile's place in the picture is not known.
    """

    name: ClassVar[str] = "InternVL"
    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    pixel_std: ClassVar[tuple[float, float, float]] = IMAGENET_STD

    def side(self, model: PreTrainedModel) -> int:
        vision = model.config.vision_config
        return int(vision.image_size[0] // vision.patch_size[0] * model.config.downsample_ratio)

    def finish(self, model: PreTrainedModel, spans: list[Span], input_ids: Tensor) -> list[Span]:
        """Tiles of one picture follow each other without a token between; the last of several is the whole picture."""
        return name_tiles(spans)

    def encoder(self, model: PreTrainedModel, media: str) -> tuple[nn.ModuleList, int]:
        layers = encoder_layers(self.tower(model, media))
        return layers, feature_layer(layers, model.config.vision_feature_layer)
