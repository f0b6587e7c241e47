"""Base of the families whose images (or tiles, or frames) are squares of one size from a CLIP-like encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from tokenprune.families.base import (
    Encoded,
    EncoderBlocks,
    Family,
    Groups,
    Part,
    encoder_layers,
    feature_layer,
    grid_groups,
)


class Square(Family):
    """Each row of `pixel_values` gives a square of `side` x `side` tokens."""

    def side(self, model: PreTrainedModel) -> int:
        """Tokens along one side of an image."""
        vision = model.config.vision_config
        return vision.image_size // vision.patch_size

    def tower(self, model: PreTrainedModel, media: str) -> Any:
        """The vision encoder for a medium."""
        return self.base(model).vision_tower

    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        side = self.side(model)
        return [[Part((1, side, side))] for _ in range(encoded.features // (side * side))]

    def encoder(self, model: PreTrainedModel, media: str) -> tuple[nn.ModuleList, int]:
        layers = encoder_layers(self.tower(model, media))
        return layers, feature_layer(layers, getattr(model.config, "vision_feature_layer", -1))

    def group_side(self, model: PreTrainedModel, media: str) -> int:
        """Tokens along one side of what the encoder is given, an image, a tile or a frame."""
        return self.side(model)

    def whole_encoder(self, model: PreTrainedModel | None, media: str) -> str | None:
        """A token has to be a whole number of patches, and its features those of one block."""
        if model is None:
            return None
        if isinstance(getattr(model.config, "vision_feature_layer", -1), (list, tuple)):
            return "its features come from several blocks of the vision encoder."
        patches, side = patches_of(model), self.group_side(model, media)
        if patches % side:
            return f"{patches} x {patches} patches become {side} x {side} tokens, so none is a whole number of patches."
        return None

    def encoder_blocks(self, model: PreTrainedModel, media: str) -> EncoderBlocks:
        return EncoderBlocks(*self.encoder(model, media))

    def groups(self, model: PreTrainedModel, encoded: Encoded, rows: tuple[int, int]) -> Groups:
        """Each sequence is a square of patches, behind a CLS token where there is one."""
        sequences, length = rows
        patches, side = patches_of(model), self.group_side(model, encoded.media)
        first = length - patches**2 + length * torch.arange(sequences)
        members = first[:, None, None] + grid_groups(patches, patches, patches // side)
        frames = encoded.pixels.shape[1] if encoded.media == "video" else 1
        return Groups(members.flatten(0, 1), [(side, side)] * sequences, [frames] * (sequences // frames))

    def group_pixels(self, model: PreTrainedModel, encoded: Encoded, groups: Groups) -> Tensor:
        pixels, patches = self.patches(model, encoded).flatten(2), patches_of(model)
        own = grid_groups(patches, patches, patches // self.group_side(model, encoded.media)).to(pixels.device)
        return pixels[:, own].flatten(0, 1).flatten(1)

    def pool_patches(self, model: PreTrainedModel, encoded: Encoded, calls: list[Tensor]) -> list[list[Tensor]]:
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


def patches_of(model: PreTrainedModel) -> int:
    """Patches along one side of what the encoder is given."""
    vision = model.config.vision_config
    image, patch = (size if isinstance(size, int) else size[0] for size in (vision.image_size, vision.patch_size))
    return image // patch


def patch_maps(calls: list[Tensor]) -> Tensor:
    """float32 [N, c, S, S] from values [N, S * S, c] of patches, or of those and a CLS token in front."""
    flat = torch.cat(calls)
    side = int(flat.shape[1] ** 0.5)
    return flat[:, flat.shape[1] - side * side :].mT.unflatten(2, (side, side))


def flat_map(maps: Tensor) -> Tensor:
    """[S * S, c] from [c, S, S], or [N * S * S, c] from frames [N, c, S, S]."""
    return maps.movedim(-3, -1).flatten(0, -2)
