"""LLaVA-1.5: a square of patches per image from CLIP (or SigLIP), 1-D positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenprune.errors import MissingSignal, Unsupported
from tokenprune.families.base import Family, Placeholders, Span

CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}


class Llava(Family):
    """`LlavaForConditionalGeneration` with a CLIP or SigLIP tower."""

    name: ClassVar[str] = "LLaVA-1.5"
    model_types: ClassVar[tuple[str, ...]] = ("llava",)

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        vision = model.config.vision_config.model_type
        if vision not in CLASS_TOKENS:
            known = ", ".join(sorted(CLASS_TOKENS))
            raise Unsupported(f"tokenprune cannot prune a LLaVA with a {vision!r} tower. Supported towers: {known}.")
        strategy = model.config.vision_feature_select_strategy
        if (strategy == "default") != (CLASS_TOKENS[vision] == 1):
            raise Unsupported(
                f"vision_feature_select_strategy={strategy!r} on a {vision!r} tower does not give a square of patches. "
                "Use 'default' with CLIP and 'full' with SigLIP."
            )

    def placeholders(self, model: PreTrainedModel) -> dict[str, int]:
        return {"image": model.config.image_token_id}

    def spans(self, model: PreTrainedModel, runs: Sequence[Placeholders], positions: Tensor) -> list[Span]:
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size
        found = []
        for run in runs:
            if run.length % (side * side):
                raise Unsupported(
                    f"Row {run.row} holds a run of {run.length} image tokens, but an image of this model has "
                    f"{side * side}. Images cut by chunked prefill cannot be pruned; prefill in one piece."
                )
            found += [Span(run.row, run.start + i, (1, side, side)) for i in range(0, run.length, side * side)]
        return found

    def tower(self, model: PreTrainedModel) -> nn.Module:
        return self.base(model).vision_tower

    def saliency_module(self, model: PreTrainedModel) -> nn.Module:
        layers = next(m for name, m in self.tower(model).named_modules() if name.endswith("encoder.layers"))
        chosen = model.config.vision_feature_layer
        return layers[chosen if isinstance(chosen, int) else chosen[-1]].self_attn

    def saliency(
        self, model: PreTrainedModel, calls: list[Tensor], variant: str, tower_inputs: dict[str, Any]
    ) -> list[Tensor]:
        class_tokens = CLASS_TOKENS[model.config.vision_config.model_type]
        if variant == "cls" and not class_tokens:
            raise MissingSignal("This vision tower has no CLS token. Use source='received'.")
        return [image[class_tokens:] for call in calls for image in call]
