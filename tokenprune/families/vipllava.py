"""VipLLaVA: LLaVA-1.5 with features of several CLIP layers side by side."""

from __future__ import annotations

from typing import ClassVar

from torch import nn
from transformers import PreTrainedModel

from tokenprune.families.base import encoder_layers, feature_layer
from tokenprune.families.llava import Llava


class VipLlava(Llava):
    """`VipLlavaForConditionalGeneration`."""

    name: ClassVar[str] = "VipLLaVA"
    model_types: ClassVar[tuple[str, ...]] = ("vipllava",)
    projects: ClassVar[bool] = False
    conditions: ClassVar[dict[str, str]] = {}

    def encoder(self, model: PreTrainedModel, media: str) -> tuple[nn.ModuleList, int]:
        """The deepest of the feature layers; older versions of transformers call the config's attribute otherwise."""
        config = model.config
        chosen = getattr(config, "vision_feature_layers", None) or config.vision_feature_layer
        layers = encoder_layers(self.tower(model, media))
        return layers, feature_layer(layers, chosen)

    def whole_encoder(self, model: PreTrainedModel | None, media: str) -> str | None:
        return "its features come from several blocks of the vision encoder."
