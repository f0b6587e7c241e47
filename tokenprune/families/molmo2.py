"""Molmo 2: by convention, but all image tokens of a prompt see each other while it is read."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenprune.families.generic import Generic


class Molmo2(Generic):
    """`Molmo2ForConditionalGeneration`."""

    by_convention: ClassVar[tuple[str, ...]] = ("molmo2",)

    def blocks(self, model: PreTrainedModel, arguments: dict[str, Any], first: bool) -> Tensor | None:
        """One block of all image tokens, in the first forward only."""
        kinds = arguments.get("mm_token_type_ids")
        return torch.where(kinds == 1, 0, -1) if first and kinds is not None else None
