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

    def saliency_module(self, model: PreTrainedModel, media: str) -> nn.Module:
        chosen = getattr(model.config, "vision_feature_layer", -1)
        return feature_layer(encoder_layers(self.tower(model, media)), chosen).self_attn

    def saliency(self, model: PreTrainedModel, encoded: Encoded, variant: str) -> list[list[Tensor]]:
        maps = self.pool(model, patch_maps(encoded.calls[variant]))
        return [[image.flatten()] for image in maps]

    def pool(self, model: PreTrainedModel, maps: Tensor) -> Tensor:
        """float32 [N, side, side] from one value per patch [N, S, S]: the mean over the patches of each token."""
        side = self.side(model)
        return functional.adaptive_avg_pool2d(maps[:, None], (side, side))[:, 0]


def patch_maps(calls: list[Tensor]) -> Tensor:
    """float32 [N, S, S] from attention over [N, S * S] patches, or over those and a CLS token in front."""
    flat = torch.cat(calls)
    side = int(flat.shape[1] ** 0.5)
    return flat[:, flat.shape[1] - side * side :].unflatten(1, (side, side))
