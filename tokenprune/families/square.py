"""Base of the families whose images (or tiles, or frames) are squares of one size from a CLIP-like encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from tokenprune.families.base import Encoded, Family, Part, encoder_layers, feature_layer


class Square(Family):
    """Each row of `pixel_values` gives a square of `side` x `side` tokens."""

    def side(self, model: PreTrainedModel) -> int:
        """Tokens along one side of an image."""
        vision = model.config.vision_config
        return vision.image_size // vision.patch_size

    def tower(self, model: PreTrainedModel, media: str) -> nn.Module:
        """The vision encoder for a medium."""
        return self.base(model).vision_tower

    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        side = self.side(model)
        return [[Part((1, side, side))] for _ in range(encoded.features // (side * side))]

    def encoder(self, model: PreTrainedModel, media: str) -> tuple[nn.ModuleList, int]:
        layers = encoder_layers(self.tower(model, media))
        return layers, feature_layer(layers, getattr(model.config, "vision_feature_layer", -1))

    def place(self, model: PreTrainedModel, encoded: Encoded, calls: list[Tensor]) -> list[list[Tensor]]:
        """A token's value is the mean over its patches."""
        side = self.side(model)
        pooled = functional.adaptive_avg_pool2d(patch_maps(calls), (side, side))
        return [[flat_map(image)] for image in pooled]

    def patches(self, model: PreTrainedModel, encoded: Encoded) -> Tensor:
        pixels = encoded.pixels.float()
        flat = pixels.reshape(-1, *pixels.shape[-3:])
        vision = model.config.vision_config
        size = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
        return functional.unfold(flat, size, stride=size).mT.unflatten(2, (3, -1))


def patch_maps(calls: list[Tensor]) -> Tensor:
    """float32 [N, c, S, S] from values [N, S * S, c] of patches, or of those and a CLS token in front."""
    flat = torch.cat(calls)
    side = int(flat.shape[1] ** 0.5)
    return flat[:, flat.shape[1] - side * side :].mT.unflatten(2, (side, side))


def flat_map(maps: Tensor) -> Tensor:
    """[S * S, c] from [c, S, S], or [N * S * S, c] from frames [N, c, S, S]."""
    return maps.movedim(-3, -1).flatten(0, -2)
