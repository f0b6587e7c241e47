"""Tiny models of the remaining families."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PerceptionLMConfig,
    PerceptionLMForConditionalGeneration,
    PixtralVisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests.tiny.base import (
    END,
    IMAGE,
    ROW1,
    ROW2,
    SIDE,
    START,
    TEXT,
    TOWER,
    VIDEO,
    WHOLE,
    Tiny,
    Video,
    frames,
    llama,
    pictures,
    siglip,
    stacked,
)
from tests.tiny.llavas import TinyPixtral


class TinyInternVL(Tiny):
    """Tiles of 3 x 3 tokens: a large picture (20 tokens or more) has two and the whole, a small one just itself."""

    name = "internvl"
    model_class = InternVLForConditionalGeneration
    cls = True

    def config(self):
        vision = InternVLVisionConfig(**TOWER | {"image_size": [24, 24], "patch_size": [4, 4]})
        return InternVLConfig(vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_id=IMAGE)

    def count(self, part):
        return 3 if part.h * part.w >= 20 else 1

    def spans(self, part):
        return [(1, 3, 3)] * self.count(part)

    def media(self, rows, made):
        tiles = sum(self.count(p) for p in pictures(rows))
        return {"pixel_values": torch.randn(tiles, 3, 24, 24, generator=made)} if tiles else {}


class TinySmolVLM(TinyInternVL):
    """Tiles of 3 x 3 tokens behind marks of their own."""

    name = "smolvlm"
    model_class = SmolVLMForConditionalGeneration
    config_class = SmolVLMConfig
    cls = False

    def config(self):
        # Patches of 3: transformers 5.20 wants the tokens of a tile to be a multiple of a patch's side.
        vision = TOWER | {"image_size": 18, "patch_size": 3}
        return self.config_class(vision_config=vision, text_config=llama(), image_token_id=IMAGE, scale_factor=2)

    def text_model(self, model):
        return model.model.text_model

    def ids(self, part):
        tile = [IMAGE] * 9
        marks = [ROW1, ROW2, WHOLE] if self.count(part) == 3 else [WHOLE]
        return [token for mark in marks for token in (START, mark, *tile)] + [END]

    def media(self, rows, made):
        tiles = sum(self.count(p) for p in pictures(rows))
        pixels = torch.randn(1, tiles, 3, 18, 18, generator=made)
        return {"pixel_values": pixels, "pixel_attention_mask": torch.ones(1, tiles, 18, 18).long()}


class TinyIdefics3(TinySmolVLM):
    name = "idefics3"
    model_class = Idefics3ForConditionalGeneration
    config_class = Idefics3Config


class TinyGemma3(Tiny):
    """Images of 3 x 3 tokens that see each other; windows of 14 in two layers of three."""

    name = "gemma3"
    model_class = Gemma3ForConditionalGeneration

    def config(self):
        kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
        text = Gemma3TextConfig(
            **TEXT, head_dim=16, query_pre_attn_scalar=16, sliding_window=14, layer_types=kinds, rms_norm_eps=1e-6
        )
        return Gemma3Config(
            vision_config=siglip(),
            text_config=text,
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
            mm_tokens_per_image=9,
        )

    def build(self, attention="sdpa"):
        model = super().build(attention)
        with torch.no_grad():  # zeros by default, which would make all images alike
            model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.1)
        return model

    def spans(self, part):
        return [(1, 3, 3)]

    def media(self, rows, made):
        return stacked(rows, made)

    def extra(self, batch):
        return {"token_type_ids": (batch["input_ids"] == IMAGE).long()}


class TinyPaliGemma(Tiny):
    """Images of 36 tokens; image and prompt see each other in both directions."""

    name = "paligemma"
    model_class = PaliGemmaForConditionalGeneration

    def text(self):
        return GemmaConfig(**TEXT, head_dim=16)

    def config(self):
        vision = siglip()
        vision.projection_dim = 64
        return PaliGemmaConfig(
            vision_config=vision, text_config=self.text(), image_token_index=IMAGE, projection_dim=64, hidden_size=64
        )

    def spans(self, part):
        return [(1, SIDE, SIDE)]

    def media(self, rows, made):
        return stacked(rows, made)

    def extra(self, batch):
        return {"token_type_ids": torch.zeros_like(batch["input_ids"])}

    def grown_extra(self, inputs, batch):
        added = batch["input_ids"].shape[1] - inputs["input_ids"].shape[1]
        return {"token_type_ids": nn.functional.pad(inputs["token_type_ids"], (0, added), value=1)}


class TinyPaliGemma2(TinyPaliGemma):
    """Windows of 20 in every other layer, which the prefix ignores; Gemma 2 runs on eager attention alone."""

    name = "paligemma2"

    def build(self, attention="eager"):
        return super().build("eager")

    def text(self):
        return Gemma2Config(
            **TEXT, head_dim=16, query_pre_attn_scalar=16, sliding_window=20, attn_logit_softcapping=None
        )


class TinyMistral3(TinyPixtral):
    """Pixtral with 2 x 2 merging, and a text model with a window of 16 tokens in all layers."""

    name = "mistral3"
    model_class = Mistral3ForConditionalGeneration
    pixels = 8

    def config(self):
        vision = PixtralVisionConfig(**TOWER | {"image_size": 64})
        text = MistralConfig(**TEXT, sliding_window=16)
        return Mistral3Config(vision_config=vision, text_config=text, image_token_index=IMAGE, spatial_merge_size=2)


class StandInConfig(PreTrainedConfig):
    """Stands in for timm's encoders, which need torchvision."""

    model_type = "tokenprune_stand_in"

    def __init__(self, width=32, patch=4, flat=False, **kwargs):
        self.hidden_size, self.patch, self.flat = width, patch, flat
        self.model_args = {"embed_dim": width}
        super().__init__(**kwargs)


class StandIn(PreTrainedModel):
    """One strided convolution: a map [N, C, H, W] as FastViT gives, or tokens with a CLS in front as PE gives."""

    config_class = StandInConfig
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config):
        super().__init__(config)
        self.conv = nn.Conv2d(3, config.hidden_size, config.patch, config.patch)
        self.post_init()

    def forward(self, pixel_values, **kwargs):
        found = self.conv(pixel_values)
        if self.config.flat:
            tokens = found.flatten(2).transpose(1, 2)
            found = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
        return BaseModelOutputWithPooling(last_hidden_state=found)


AutoConfig.register(StandInConfig.model_type, StandInConfig)
AutoModel.register(StandInConfig, StandIn)


class TinyFastVlm(Tiny):
    """36 tokens from a feature map."""

    name = "fast_vlm"
    model_class = FastVlmForConditionalGeneration

    def config(self):
        return FastVlmConfig(vision_config=StandInConfig(), text_config=Qwen2Config(**TEXT), image_token_index=IMAGE)

    def spans(self, part):
        return [(1, SIDE, SIDE)]

    def media(self, rows, made):
        return stacked(rows, made)


class TinyPerceptionLM(Tiny):
    """Squares of 3 x 3 tokens: an image is one, a video one per frame."""

    name = "perception_lm"
    model_class = PerceptionLMForConditionalGeneration
    placeholder = (IMAGE, VIDEO)
    has_video = True

    def config(self):
        return PerceptionLMConfig(
            vision_config=StandInConfig(flat=True),
            text_config=llama(),
            projector_pooling_ratio=2,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        )

    def spans(self, part):
        return [(1, 3, 3)] * (part.t if isinstance(part, Video) else 1)

    def media(self, rows, made):
        images = stacked(rows, made)
        return {name: value[:, None] for name, value in images.items()} | frames(rows, made)
