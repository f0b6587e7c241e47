"""Tiny models of further types whose pictures are squares of one size, alone or as tiles of a larger picture."""

from __future__ import annotations

from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    GotOcr2Config,
    GotOcr2ForConditionalGeneration,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    Qwen2Config,
)

from tests.tiny.base import BREAK, END, IMAGE, ROW1, ROW2, START, TEXT, TOWER, WHOLE, llama, siglip, stacked
from tests.tiny.llavas import TinyLlavaSiglip
from tests.tiny.others import TinyInternVL

LAST = 88  # id of a further mark


class TinyOvis2(TinyInternVL):
    """The whole and then the tiles, each behind an indicator that the model embeds by its visual vocabulary."""

    name = "ovis2"
    model_class = Ovis2ForConditionalGeneration
    cls = False
    fails = ("chunks",)  # the indicators' features are only there in the first

    def config(self):
        return Ovis2Config(
            text_config=Qwen2Config(**TEXT),
            vision_config=TOWER | dict(hidden_stride=2, vocab_size=48),
            image_token_id=IMAGE,
            visual_indicator_token_ids=[START, WHOLE, ROW1, ROW2, END],
            vocab_size=TEXT["vocab_size"],
            hidden_size=TEXT["hidden_size"],
        )

    def ids(self, part):
        tile = [IMAGE] * 9
        tiles = [START, *tile, WHOLE, *tile, ROW1, *tile, END]
        return tiles if self.count(part) == 3 else [START, *tile, WHOLE, END]


class TinyAyaVision(TinyInternVL):
    """Each tile behind a mark of its own; windows of 14 in two layers of three, and the third does not rotate."""

    name = "aya_vision"
    model_class = AyaVisionForConditionalGeneration
    config_class = AyaVisionConfig
    cls = False

    def config(self):
        kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
        text = Cohere2Config(**TEXT, sliding_window=14, layer_types=kinds)
        return self.config_class(vision_config=siglip(), text_config=text, image_token_id=IMAGE, downsample_factor=2)

    def ids(self, part):
        marks = [ROW1, ROW2, WHOLE] if self.count(part) == 3 else [WHOLE]
        return [START, *[token for mark in marks for token in (mark, *[IMAGE] * 9)], END]


class TinyCohere2Vision(TinyAyaVision):
    """A break behind each tile, and another id behind the whole, which stays."""

    name = "cohere2_vision"
    model_class = Cohere2VisionForConditionalGeneration
    config_class = Cohere2VisionConfig
    placeholder = (IMAGE, BREAK)

    def ids(self, part):
        tile = [IMAGE] * 9
        tiles = [*tile, BREAK] * 2 if self.count(part) == 3 else []
        return [START, *tiles, *tile, LAST, END]


class TinyDeepseekVL(TinyLlavaSiglip):
    """36 tokens per image."""

    name = "deepseek_vl"
    model_class = DeepseekVLForConditionalGeneration

    def config(self):
        return DeepseekVLConfig(vision_config=siglip(), text_config=llama(), image_token_id=IMAGE)


class TinyGotOcr2(TinyLlavaSiglip):
    """3 x 3 tokens of 12 x 12 patches."""

    name = "got_ocr2"
    model_class = GotOcr2ForConditionalGeneration

    def config(self):
        vision = dict(
            hidden_size=32,
            output_channels=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=48,
            patch_size=4,
            mlp_dim=64,
            window_size=5,
            global_attn_indexes=[1],
            initializer_range=0.02,  # the default of 1e-10 makes all pictures alike
        )
        return GotOcr2Config(vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_index=IMAGE)

    def make(self, config, attention="sdpa"):
        return super().make(config, {"text_config": attention, "vision_config": "eager"})  # its encoder has no other

    def spans(self, part):
        return [(1, 3, 3)]

    def media(self, rows, made):
        return stacked(rows, made, 48)
