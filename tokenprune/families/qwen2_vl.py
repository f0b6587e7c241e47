"""Qwen2-VL: images and videos of any size, M-RoPE positions, an encoder with 2 x 2 merging."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenprune.families.base import CLIP_STD, NO_CLASS_TOKEN, THREE_AXES, Encoded, EncoderBlocks, Family, Groups, Part


class Qwen2VL(Family):
    """`Qwen2VLForConditionalGeneration`."""

    name: ClassVar[str] = "Qwen2-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    getters: ClassVar[dict[str, str]] = {"image": "get_image_features", "video": "get_video_features"}
    pixel_std: ClassVar[tuple[float, float, float]] = CLIP_STD
    missing: ClassVar[dict[str, str]] = NO_CLASS_TOKEN | THREE_AXES

    def merge(self, model: PreTrainedModel, encoded: Encoded) -> int:
        """Patches along one side of a token."""
        return model.config.vision_config.spatial_merge_size

    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        merge = self.merge(model, encoded)
        return [[Part((t, h // merge, w // merge), encoded.media)] for t, h, w in self._grids(encoded).tolist()]

    def encoder(self, model: PreTrainedModel, media: str) -> tuple[nn.ModuleList, int]:
        blocks = self.base(model).visual.blocks
        return blocks, len(blocks) - 1

    def patches(self, model: PreTrainedModel, encoded: Encoded) -> Tensor:
        return encoded.pixels.float().unflatten(1, (3, -1))[None]

    def pool_patches(self, model: PreTrainedModel, encoded: Encoded, calls: list[Tensor]) -> list[list[Tensor]]:
        """The encoder holds the merge**2 patches of a token side by side; their mean is the token's."""
        unit = self.merge(model, encoded) ** 2
        merged = torch.cat([call.flatten(0, 1) for call in calls]).unflatten(0, (-1, unit)).mean(1)
        grids = self._grids(encoded)
        merged = self.in_order(model, merged, grids)
        return [[item] for item in merged.split((grids.prod(-1) // unit).tolist())]

    def whole_encoder(self, model: PreTrainedModel | None, media: str) -> str | None:
        return None

    def encoder_blocks(self, model: PreTrainedModel, media: str) -> EncoderBlocks:
        visual = self.base(model).visual
        return EncoderBlocks(visual.blocks, len(visual.blocks) - 1, self.exits(visual), visual.patch_embed)

    def exits(self, visual: Any) -> tuple[nn.Module, ...]:
        """What makes one row of the patches of a group."""
        return (visual.merger,)

    def groups(self, model: PreTrainedModel, encoded: Encoded, rows: tuple[int, int]) -> Groups:
        """Every frame is a segment. The patches of a group lie side by side."""
        merge = self.merge(model, encoded)
        grids = self._grids(encoded)
        count = rows[0] * rows[1] // merge**2
        held = self.in_order(model, torch.arange(count), grids)
        members = held[:, None] * merge**2 + torch.arange(merge**2)
        sizes = grids.tolist()
        segments = [(h // merge, w // merge) for t, h, w in sizes for _ in range(t)]
        return Groups(members, segments, [t for t, _, _ in sizes])

    def group_pixels(self, model: PreTrainedModel, encoded: Encoded, groups: Groups) -> Tensor:
        """The processor lays the patches of a group side by side, groups in reading order."""
        return encoded.pixels.unflatten(0, (len(groups.members), -1)).flatten(1)

    def in_order(self, model: PreTrainedModel, merged: Tensor, grids: Tensor) -> Tensor:
        """Tokens in reading order, from the order in which the encoder holds them."""
        return merged

    def _grids(self, encoded: Encoded) -> Tensor:
        return encoded.arguments[f"{encoded.media}_grid_thw"]
