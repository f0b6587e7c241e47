"""LLaVA-1.5: a square of patches per image from CLIP (or SigLIP), 1-D positions."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from tokenprune.errors import Unsupported
from tokenprune.families.base import CLIP_STD, NO_CLASS_TOKEN, without
from tokenprune.families.square import Square

CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}


class Llava(Square):
    """`LlavaForConditionalGeneration` with a CLIP or SigLIP tower."""

    name: ClassVar[str] = "LLaVA-1.5"
    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    conditions: ClassVar[dict[str, str]] = without("With a CLIP tower; SigLIP has no CLS token.", *NO_CLASS_TOKEN)

    projects: ClassVar[bool] = True
    pixel_std: ClassVar[tuple[float, float, float]] = CLIP_STD

    def project(self, model: PreTrainedModel, features: Tensor) -> Tensor:
        projector = self.base(model).multi_modal_projector
        return projector(features.to(next(projector.parameters()).dtype))

    def serves(self, model: PreTrainedModel) -> bool:
        return super().serves(model) and model.config.vision_config.model_type != "pixtral"

    def check(self, model: PreTrainedModel) -> None:
        vision = model.config.vision_config.model_type
        if vision not in CLASS_TOKENS:
            known = ", ".join(sorted(CLASS_TOKENS))
            raise Unsupported(
                f"tokenprune cannot prune {self.name} with a {vision!r} tower. Supported towers: {known}."
            )
        strategy = getattr(model.config, "vision_feature_select_strategy", "default")
        if (strategy == "default") != (CLASS_TOKENS[vision] == 1):
            raise Unsupported(
                f"vision_feature_select_strategy={strategy!r} on a {vision!r} tower does not give a square of patches. "
                "Use 'default' with CLIP and 'full' with SigLIP."
            )

    def lacks(self, signal: str, variant: str, model: PreTrainedModel | None = None) -> str | None:
        key = f"{signal}:{variant}"
        if model is not None and key in NO_CLASS_TOKEN and not CLASS_TOKENS[model.config.vision_config.model_type]:
            return NO_CLASS_TOKEN[key]
        return super().lacks(signal, variant, model)
