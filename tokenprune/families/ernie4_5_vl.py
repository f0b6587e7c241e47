"""ERNIE 4.5 VL: built like Qwen2-VL, 2 x 2 patches merged behind the encoder, and two frames of a video with them."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenprune.families.base import Encoded, EncoderBlocks, Part
from tokenprune.families.qwen2_vl import Qwen2VL


class Ernie45VL(Qwen2VL):
    """`Ernie4_5_VLMoeForConditionalGeneration`."""

    name: ClassVar[str] = "ERNIE 4.5 VL"
    model_types: ClassVar[tuple[str, ...]] = ("ernie4_5_vl_moe",)
    no_stream: ClassVar[str] = "has experts for visual tokens, and no test has seen a stream tell it which those are."

    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        frames = self._frames(model, encoded)
        whole = [part for parts in super().items(model, encoded) for part in parts]
        return [[Part((part.grid[0] // frames, *part.grid[1:]), part.name)] for part in whole]

    def encoder(self, model: PreTrainedModel, media: str) -> tuple[nn.ModuleList, int]:
        blocks = self.base(model).vision_tower.blocks
        return blocks, len(blocks) - 1

    def whole_encoder(self, model: PreTrainedModel | None, media: str) -> str | None:
        return "a token of a video is made of two frames." if media == "video" else None

    def encoder_blocks(self, model: PreTrainedModel, media: str) -> EncoderBlocks:
        """What follows the blocks takes all patches."""
        return EncoderBlocks(*self.encoder(model, media), embed=self.base(model).vision_tower.patch_embed)

    def pool_patches(self, model: PreTrainedModel, encoded: Encoded, calls: list[Tensor]) -> list[list[Tensor]]:
        """A token's value is the mean over its frames too."""
        frames = self._frames(model, encoded)
        found = []
        for parts, values in zip(self.items(model, encoded), super().pool_patches(model, encoded, calls), strict=True):
            times = parts[0].grid[0]
            found.append([x.unflatten(0, (times, frames, -1)).mean(1).flatten(0, 1) for x in values])
        return found

    def _frames(self, model: PreTrainedModel, encoded: Encoded) -> int:
        """Frames of a token."""
        return model.config.vision_config.temporal_merge_size if encoded.media == "video" else 1
