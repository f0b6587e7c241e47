"""Qwen2-VL: images and videos of any size, M-RoPE positions, an encoder with 2 x 2 merging."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenprune.families.base import NO_CLASS_TOKEN, Encoded, Family, Part


class Qwen2VL(Family):
    """`Qwen2VLForConditionalGeneration`."""

    name: ClassVar[str] = "Qwen2-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    getters: ClassVar[dict[str, str]] = {"image": "get_image_features", "video": "get_video_features"}
    missing: ClassVar[dict[str, str]] = NO_CLASS_TOKEN

    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        merge = model.config.vision_config.spatial_merge_size
        return [[Part((t, h // merge, w // merge), encoded.media)] for t, h, w in self._grids(encoded).tolist()]

    def saliency_module(self, model: PreTrainedModel, media: str) -> nn.Module:
        return self.base(model).visual.blocks[-1].attn

    def saliency(self, model: PreTrainedModel, encoded: Encoded, variant: str) -> list[list[Tensor]]:
        """The encoder holds the merge**2 patches of a token side by side; their mean is the token's."""
        unit = model.config.vision_config.spatial_merge_size**2
        merged = torch.cat([call.flatten() for call in encoded.calls[variant]]).unflatten(0, (-1, unit)).mean(-1)
        grids = self._grids(encoded)
        merged = self.in_order(model, merged, grids)
        return [[item] for item in merged.split((grids.prod(-1) // unit).tolist())]

    def in_order(self, model: PreTrainedModel, merged: Tensor, grids: Tensor) -> Tensor:
        """Tokens in reading order, from the order in which the encoder holds them."""
        return merged

    def _grids(self, encoded: Encoded) -> Tensor:
        return encoded.arguments[f"{encoded.media}_grid_thw"]
