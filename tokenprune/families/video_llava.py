"""Video-LLaVA: one encoder for images, one for videos, whose frames keep their CLS token."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from tokenprune.families.base import Encoded, Part
from tokenprune.families.llava import Llava
from tokenprune.families.square import flat_map, patch_maps


class VideoLlava(Llava):
    """`VideoLlavaForConditionalGeneration`. A frame's CLS token stands before it and goes when the frame has gone."""

    name: ClassVar[str] = "Video-LLaVA"
    model_types: ClassVar[tuple[str, ...]] = ("video_llava",)
    conditions: ClassVar[dict[str, str]] = {}
    getters: ClassVar[dict[str, str]] = {"image": "get_image_features", "video": "get_video_features"}

    def tower(self, model: PreTrainedModel, media: str) -> Any:
        return getattr(self.base(model), f"{media}_tower")

    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        if encoded.media == "image":
            return super().items(model, encoded)
        videos, frames = encoded.pixels.shape[:2]
        side = self.side(model)
        return [[Part((frames, side, side), frame_start=True)] for _ in range(videos)]

    def pool_patches(self, model: PreTrainedModel, encoded: Encoded, calls: list[Tensor]) -> list[list[Tensor]]:
        if encoded.media == "image":
            return super().pool_patches(model, encoded, calls)
        return [[flat_map(video)] for video in patch_maps(calls).split(encoded.pixels.shape[1])]
