"""VideoLLaMA 3: pictures as fine as they come, frames of videos at half of that; 1-D positions."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from tokenprune.errors import Unsupported
from tokenprune.families.base import NO_CLASS_TOKEN, Encoded, EncoderBlocks
from tokenprune.families.qwen2_vl import Qwen2VL


class VideoLlama3(Qwen2VL):
    """`VideoLlama3ForConditionalGeneration`. A video is one span across its timestamps."""

    name: ClassVar[str] = "VideoLLaMA 3"
    model_types: ClassVar[tuple[str, ...]] = ("video_llama_3",)
    pixel_std: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    missing: ClassVar[dict[str, str]] = NO_CLASS_TOKEN

    def check_prompt(self, arguments: dict[str, Any]) -> None:
        mask = arguments.get("video_compression_mask")
        if mask is not None and not mask.all():
            raise Unsupported(
                f"The processor has left out {int((~mask).sum())} of {len(mask)} tokens of these videos, so what is "
                "left has no rows and columns. Give it use_token_compression=False."
            )

    def merge(self, model: PreTrainedModel, encoded: Encoded) -> int:
        merges = set(encoded.arguments[f"{encoded.media}_merge_sizes"].tolist())
        if len(merges) > 1:
            raise Unsupported(
                f"The {encoded.media}s of this call are merged by {sorted(merges)}. Give all the same "
                f"{encoded.media}_merge_sizes, or one prompt at a time."
            )
        return merges.pop()

    def encoder(self, model: PreTrainedModel, media: str) -> tuple[nn.ModuleList, int]:
        layers = self.base(model).vision_model.encoder.layers
        return layers, len(layers) - 1

    def encoder_blocks(self, model: PreTrainedModel, media: str) -> EncoderBlocks:
        """Tokens are interpolated from all rows behind the blocks."""
        return EncoderBlocks(*self.encoder(model, media), embed=self.base(model).vision_model.embeddings)
