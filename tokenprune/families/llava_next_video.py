"""LLaVA-NeXT-Video: images as in LLaVA-NeXT, and videos with pooled frames."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tokenprune.families.base import Encoded, Part
from tokenprune.families.llava_next import LlavaNext
from tokenprune.families.square import patch_maps


class LlavaNextVideo(LlavaNext):
    """`LlavaNextVideoForConditionalGeneration`."""

    name: ClassVar[str] = "LLaVA-NeXT-Video"
    model_types: ClassVar[tuple[str, ...]] = ("llava_next_video",)
    getters: ClassVar[dict[str, str]] = {"image": "get_image_features", "video": "get_video_features"}

    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        if encoded.media == "image":
            return super().items(model, encoded)
        videos, frames = encoded.pixels.shape[:2]
        side = self.side(model) // model.config.spatial_pool_stride
        return [[Part((frames, side, side))] for _ in range(videos)]

    def saliency(self, model: PreTrainedModel, encoded: Encoded, variant: str) -> list[list[Tensor]]:
        if encoded.media == "image":
            return super().saliency(model, encoded, variant)
        maps = patch_maps(encoded.calls[variant])
        pooled = functional.avg_pool2d(maps[:, None], model.config.spatial_pool_stride)
        frames = encoded.pixels.shape[1]
        return [[video.flatten()] for video in pooled.split(frames)]
