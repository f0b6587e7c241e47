"""LLaVA-NeXT-Video: images as in LLaVA-NeXT, and videos with pooled frames."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tokenprune.families.base import Encoded, Part
from tokenprune.families.llava_next import LlavaNext
from tokenprune.families.square import flat_map, patch_maps


class LlavaNextVideo(LlavaNext):
    """`LlavaNextVideoForConditionalGeneration`."""

    name: ClassVar[str] = "LLaVA-NeXT-Video"
    model_types: ClassVar[tuple[str, ...]] = ("llava_next_video",)
    projects: ClassVar[bool] = False
    getters: ClassVar[dict[str, str]] = {"image": "get_image_features", "video": "get_video_features"}

    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        if encoded.media == "image":
            return super().items(model, encoded)
        videos, frames = encoded.pixels.shape[:2]
        side = self.side(model) // model.config.spatial_pool_stride
        return [[Part((frames, side, side))] for _ in range(videos)]

    def group_side(self, model: PreTrainedModel, media: str) -> int:
        side = self.side(model)
        return side if media == "image" else side // model.config.spatial_pool_stride

    def pool_patches(self, model: PreTrainedModel, encoded: Encoded, calls: list[Tensor]) -> list[list[Tensor]]:
        if encoded.media == "image":
            return super().pool_patches(model, encoded, calls)
        pooled = functional.avg_pool2d(patch_maps(calls), model.config.spatial_pool_stride)
        return [[flat_map(video)] for video in pooled.split(encoded.pixels.shape[1])]
