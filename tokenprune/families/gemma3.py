"""Gemma 3: pooled SigLIP squares whose tokens see each other in both directions; window and full layers by turns."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from tokenprune.families.base import NO_CLASS_TOKEN
from tokenprune.families.square import Square


class Gemma3(Square):
    """`Gemma3ForConditionalGeneration` and ShieldGemma 2; pan-and-scan crops are images of their own."""

    name: ClassVar[str] = "Gemma 3"
    model_types: ClassVar[tuple[str, ...]] = ("gemma3", "shieldgemma2")
    missing: ClassVar[dict[str, str]] = NO_CLASS_TOKEN

    def side(self, model: PreTrainedModel) -> int:
        return int(model.config.mm_tokens_per_image**0.5)

    def blocks(self, model: PreTrainedModel, arguments: dict[str, Any], first: bool) -> Tensor | None:
        """Each run of image tokens is a block."""
        kinds = arguments.get("token_type_ids")
        if kinds is None:
            return None
        image = kinds == 1
        starts = image & ~pad(image, (1, 0))[:, :-1]
        return (starts.long().cumsum(1) - 1).masked_fill(~image, -1)
