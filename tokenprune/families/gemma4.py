"""Gemma 4: by convention, but its large checkpoints let image tokens see each other in sliding layers."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from tokenprune.families.generic import Generic


class Gemma4(Generic):
    """`Gemma4ForConditionalGeneration`."""

    by_convention: ClassVar[tuple[str, ...]] = ("gemma4",)
    block_layers: ClassVar[str | None] = "sliding_attention"

    def blocks(self, model: PreTrainedModel, arguments: dict[str, Any], first: bool) -> Tensor | None:
        """Each run of tokens of images and videos, where the checkpoint asks for it; not beyond the window."""
        kinds = arguments.get("mm_token_type_ids")
        if kinds is None or model.config.get_text_config().use_bidirectional_attention != "vision":
            return None
        seen = (kinds == 1) | (kinds == 2)
        starts = seen & ~pad(seen, (1, 0))[:, :-1]
        return (starts.long().cumsum(1) - 1).masked_fill(~seen, -1)


class Gemma4Unified(Gemma4):
    """`Gemma4UnifiedForConditionalGeneration`, whose forward has the blocks in all layers and beyond the window."""

    by_convention: ClassVar[tuple[str, ...]] = ("gemma4_unified",)
    block_layers: ClassVar[str | None] = None
    blocks_ignore_window: ClassVar[bool] = True
