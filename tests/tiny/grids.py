"""Tiny models of further types that take packed patches of pictures of any size."""

from __future__ import annotations

import torch
from transformers import (
    Ernie4_5_VLMoeConfig,
    Ernie4_5_VLMoeForConditionalGeneration,
    Exaone4_5_Config,
    Exaone4_5_ForConditionalGeneration,
    Exaone4Config,
    HunYuanVLConfig,
    HunYuanVLForConditionalGeneration,
    LightOnOcrConfig,
    LightOnOcrForConditionalGeneration,
    PaddleOCRVLConfig,
    PaddleOCRVLForConditionalGeneration,
    PixtralVisionConfig,
    Qwen2Config,
    Qwen3Config,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
)

from tests.tiny.base import END, IMAGE, START, TEXT, TOWER, VIDEO, Tiny, Video, pictures, videos
from tests.tiny.llavas import TinyPixtral
from tests.tiny.qwens import IDS, MROPE, VISION, TinyQwen25VL

SIGLIP = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, patch_size=4)


class TinyPaddleOcrVL(TinyQwen25VL):
    """Patches in raster order."""

    name = "paddleocr_vl"
    model_class = PaddleOCRVLForConditionalGeneration
    placeholder = (IMAGE,)
    has_video = False
    patch = (3, 4, 4)

    def config(self):
        vision = SIGLIP | dict(image_size=24, spatial_merge_size=2)
        return PaddleOCRVLConfig(text_config=TEXT | MROPE | {"head_dim": 16}, vision_config=vision, **IDS)


class TinyLightOnOcr(TinyPixtral):
    """Pixtral with 2 x 2 merging and without breaks."""

    name = "lighton_ocr"
    model_class = LightOnOcrForConditionalGeneration
    placeholder = (IMAGE,)
    pixels = 8

    def config(self):
        vision = PixtralVisionConfig(**TOWER | {"image_size": 64})
        text = Qwen3Config(**TEXT, head_dim=16)
        return LightOnOcrConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, spatial_merge_size=2)

    def ids(self, part):
        return Tiny.ids(self, part)


class TinyExaone45(TinyQwen25VL):
    """Two heads of the encoder share their keys; windows of 14 in two layers of three, and the third does not
    rotate."""

    name = "exaone4_5"
    model_class = Exaone4_5_ForConditionalGeneration
    counts_padding = moves_rows = True

    def config(self):
        kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
        vision = VISION | dict(hidden_size=32, intermediate_size=48, window_size=16, fullatt_block_indexes=[1])
        return Exaone4_5_Config(
            text_config=Exaone4Config(**TEXT, sliding_window=14, layer_types=kinds),
            vision_config=vision | dict(out_hidden_size=64, num_key_value_heads=1),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        )

    def extra(self, batch):
        return {}


class TinyVideoLlama3(TinyQwen25VL):
    """A picture has a token for each patch, a frame of a video one for 2 x 2 of them; text between the frames."""

    name = "video_llama_3"
    model_class = VideoLlama3ForConditionalGeneration
    counts_padding = True
    patch = (3 * 4 * 4,)

    def config(self):
        return VideoLlama3Config(
            text_config=Qwen2Config(**TEXT), vision_config=SIGLIP, image_token_id=IMAGE, video_token_id=VIDEO
        )

    def ids(self, part):
        if isinstance(part, Video):
            return [token for t in range(part.t) for token in (40 + t, *[VIDEO] * (part.h * part.w))]
        return super().ids(part)

    def extra(self, batch):
        return {}

    def media(self, rows, made):
        found = {}
        images, clips = pictures(rows), videos(rows)
        if images:
            found["image_grid_thw"] = torch.tensor([[1, p.h, p.w] for p in images])
            found["image_merge_sizes"] = torch.ones(len(images), dtype=torch.long)
            found["pixel_values"] = self.patches(found["image_grid_thw"], made)
        if clips:
            found["video_grid_thw"] = torch.tensor([[v.t, 2 * v.h, 2 * v.w] for v in clips])
            found["video_merge_sizes"] = torch.full((len(clips),), 2)
            found["pixel_values_videos"] = self.patches(found["video_grid_thw"], made)
        return found


class TinyErnie45VL(TinyQwen25VL):
    """A token of a video is of two frames; experts of their own for what is picture, marks around it included."""

    name = "ernie4_5_vl_moe"
    model_class = Ernie4_5_VLMoeForConditionalGeneration
    fails = ("drafts",)  # they have no types
    patch = (3 * 4 * 4,)

    def config(self):
        rope = MROPE["rope_parameters"] | {"mrope_section": [3, 3, 2]}
        experts = dict(moe_num_experts=4, moe_k=2, moe_intermediate_size=[32, 16])
        vision = VISION | dict(hidden_size=32, intermediate_size=48)
        ids = dict(image_token_id=IMAGE, video_token_id=VIDEO, image_start_token_id=START, image_end_token_id=END)
        return Ernie4_5_VLMoeConfig(text_config=TEXT | experts | {"rope_parameters": rope}, vision_config=vision, **ids)

    def extra(self, batch):
        ids = batch["input_ids"]
        marks = (ids == START) | (ids == END)
        types = super().extra(batch)["mm_token_type_ids"]
        return {"mm_token_type_ids": types, "moe_mm_token_type_ids": ((types > 0) | marks).int()}

    def grown_extra(self, inputs, batch):
        added = batch["input_ids"].shape[1] - inputs["input_ids"].shape[1]
        return {name: torch.nn.functional.pad(types, (0, added)) for name, types in self.extra(inputs).items()}

    def media(self, rows, made):
        return super().media([[twice(part) for part in row] for row in rows], made)


def twice(part):
    """A video of twice as many frames."""
    return Video(2 * part.t, part.h, part.w) if isinstance(part, Video) else part


class TinyHunYuanVL(TinyQwen25VL):
    """A newline after each row, one token before the rows and one behind; positions of four axes."""

    name = "hunyuan_vl"
    model_class = HunYuanVLForConditionalGeneration
    placeholder = (IMAGE,)
    has_video = False
    axes = 4
    counts_images = True
    patch = (3 * 4 * 4,)

    def config(self):
        rope = dict(rope_type="xdrope", rope_theta=1e4, alpha=1000.0, factor=1.0, xdrope_section=[2, 2, 2, 2])
        return HunYuanVLConfig(
            text_config=TEXT | dict(head_dim=16, rope_parameters=rope),
            vision_config=SIGLIP | dict(max_image_size=32, out_hidden_size=64),
            image_token_id=IMAGE,
            im_start_id=START,
            im_end_id=END,
            im_newline_id=94,
        )

    def ids(self, part):
        return [START, *[IMAGE] * (part.h * (part.w + 1) + 2), END]
