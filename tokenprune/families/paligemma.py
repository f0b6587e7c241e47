"""PaliGemma: one SigLIP square in front; image and prompt see each other in both directions, the answer does not."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenprune.families.base import NO_CLASS_TOKEN
from tokenprune.families.square import Square


class PaliGemma(Square):
    """`PaliGemmaForConditionalGeneration`, PaliGemma 2 included."""

    name: ClassVar[str] = "PaliGemma"
    model_types: ClassVar[tuple[str, ...]] = ("paligemma",)
    missing: ClassVar[dict[str, str]] = NO_CLASS_TOKEN
    blocks_ignore_window: ClassVar[bool] = True

    def blocks(self, model: PreTrainedModel, arguments: dict[str, Any], first: bool) -> Tensor | None:
        """The prefix (token type 0) is one block, in the first forward only."""
        kinds = arguments.get("token_type_ids")
        again = arguments.get("pixel_values") is not None
        if kinds is None or not (first or again):
            return None
        return torch.where(kinds == 0, 0, -1)
