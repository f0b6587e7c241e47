"""Mistral 3 and Pixtral: pictures of any size, a break token in the text after each row of tokens but the last."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenprune.families.base import CLIP_STD, NO_CLASS_TOKEN, Encoded, Separator, Span, feature_layer
from tokenprune.families.raster import Raster


class Mistral3(Raster):
    """`Mistral3ForConditionalGeneration`, and `LlavaForConditionalGeneration` with a Pixtral tower."""

    name: ClassVar[str] = "Mistral 3, Pixtral"
    model_types: ClassVar[tuple[str, ...]] = ("mistral3",)
    pixel_std: ClassVar[tuple[float, float, float]] = CLIP_STD
    missing: ClassVar[dict[str, str]] = NO_CLASS_TOKEN

    def serves(self, model: PreTrainedModel) -> bool:
        vision = getattr(model.config, "vision_config", None)
        pixtral = model.config.model_type == "llava" and getattr(vision, "model_type", None) == "pixtral"
        return super().serves(model) or pixtral

    def merge(self, model: PreTrainedModel) -> int:
        return getattr(model.config, "spatial_merge_size", 1)

    def sizes(self, model: PreTrainedModel, encoded: Encoded) -> list[tuple[int, int]]:
        sizes = encoded.arguments.get("image_sizes")
        pixels = encoded.pixels
        sizes = [pixels.shape[-2:]] * len(pixels) if sizes is None else torch.as_tensor(sizes).tolist()
        patch = model.config.vision_config.patch_size
        return [(int(h) // patch, int(w) // patch) for h, w in sizes]

    def finish(self, model: PreTrainedModel, spans: list[Span], input_ids: Tensor) -> list[Span]:
        """The token between two rows is their break; the one after the last row ends the image and stays."""
        finished = []
        for span in spans:
            _, h, w = span.grid
            last = [span.columns[row * w - 1] for row in range(1, h)]
            breaks = [
                Separator(column + 1, row * w, (row + 1) * w)
                for row, column in enumerate(last)
                if span.columns[(row + 1) * w] == column + 2
            ]
            finished.append(replace(span, separators=tuple(breaks)))
        return finished

    def encoder(self, model: PreTrainedModel, media: str) -> tuple[nn.ModuleList, int]:
        layers = self.base(model).vision_tower.transformer.layers
        return layers, feature_layer(layers, model.config.vision_feature_layer)

    def patches(self, model: PreTrainedModel, encoded: Encoded) -> Tensor:
        """Without what pads the smaller pictures of a batch."""
        size = model.config.vision_config.patch_size
        found = []
        for image, (h, w) in zip(encoded.pixels.float(), self.sizes(model, encoded), strict=True):
            image = image[None, :, : h * size, : w * size]
            found.append(nn.functional.unfold(image, size, stride=size)[0].mT.unflatten(1, (3, -1)))
        return torch.cat(found)[None]
