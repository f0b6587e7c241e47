"""LLaVA-OneVision: tiles as in LLaVA-NeXT (shrunk where there are many), and videos with pooled frames."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tokenprune.families.base import NO_CLASS_TOKEN, Encoded, Part
from tokenprune.families.llava_next import LlavaNext
from tokenprune.families.square import flat_map, patch_maps


class LlavaOnevision(LlavaNext):
    """`LlavaOnevisionForConditionalGeneration`: one image in tiles, several images untiled, videos."""

    name: ClassVar[str] = "LLaVA-OneVision"
    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    projects: ClassVar[bool] = False
    pixel_std: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    missing: ClassVar[dict[str, str]] = NO_CLASS_TOKEN
    getters: ClassVar[dict[str, str]] = {"image": "get_image_features", "video": "get_video_features"}

    def tiles(self, model: PreTrainedModel, encoded: Encoded) -> list[int]:
        whole = super().tiles(model, encoded)
        counts = encoded.arguments.get("batch_num_images")
        if counts is None:
            return whole
        alone = [n == 1 for n in counts for _ in range(n)]
        return [n if tiled else 1 for n, tiled in zip(whole, alone, strict=True)]

    def pack(self, model: PreTrainedModel, encoded: Encoded, maps: list[Tensor], newline: Tensor) -> list[Tensor]:
        aspect = encoded.arguments.get("vision_aspect_ratio") or model.config.vision_aspect_ratio
        sizes = encoded.arguments["image_sizes"]
        pack = self.base(model).pack_image_features
        return pack(maps, sizes, image_newline=newline, vision_aspect_ratio=aspect)[0]

    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        if encoded.media == "image":
            return super().items(model, encoded)
        videos, frames = encoded.pixels.shape[:2]
        side = math.ceil(self.side(model) / 2)
        if encoded.features == videos * frames * side * side:  # transformers 5.17 adds the newlines later
            encoded.pieces = (*encoded.pieces, videos)
        return [[Part((frames, side, side), end=1)] for _ in range(videos)]

    def group_side(self, model: PreTrainedModel, media: str) -> int:
        side = self.side(model)
        return side if media == "image" else math.ceil(side / 2)

    def pool_patches(self, model: PreTrainedModel, encoded: Encoded, calls: list[Tensor]) -> list[list[Tensor]]:
        if encoded.media == "image":
            return super().pool_patches(model, encoded, calls)
        maps = patch_maps(calls)
        side = math.ceil(maps.shape[-1] / 2)
        pooled = functional.interpolate(maps, size=(side, side), mode="bilinear")
        return [[flat_map(video)] for video in pooled.split(encoded.pixels.shape[1])]
