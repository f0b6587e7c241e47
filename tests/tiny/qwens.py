"""Tiny models with M-RoPE: the Qwen-VL line and GLM-4V."""

from __future__ import annotations

import torch
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from tests.tiny.base import END, IMAGE, START, TEXT, VIDEO, Tiny, Video, pictures, videos

MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
IDS = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)
VISION = dict(depth=3, num_heads=2, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)


class TinyQwen25VL(Tiny):
    """Pictures and videos of h x w tokens; one windowed and one full-attention vision block at least."""

    name = "qwen2_5_vl"
    model_class = Qwen2_5_VLForConditionalGeneration
    placeholder = (IMAGE, VIDEO)
    has_video = True
    counts_padding = False
    patch: tuple[int, ...] = (3 * 2 * 4 * 4,)  # values of one

    def config(self):
        vision = VISION | dict(hidden_size=32, intermediate_size=48, window_size=16, fullatt_block_indexes=[1])
        return Qwen2_5_VLConfig(text_config=TEXT | MROPE, vision_config=vision | {"out_hidden_size": 64}, **IDS)

    def spans(self, part):
        return [(part.t if isinstance(part, Video) else 1, part.h, part.w)]

    def extra(self, batch):
        ids = batch["input_ids"]
        return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}

    def media(self, rows, made):
        found = {}
        images, clips = pictures(rows), videos(rows)
        if images:
            found["image_grid_thw"] = torch.tensor([[1, 2 * p.h, 2 * p.w] for p in images])
            found["pixel_values"] = self.patches(found["image_grid_thw"], made)
        if clips:
            found["video_grid_thw"] = torch.tensor([[v.t, 2 * v.h, 2 * v.w] for v in clips])
            found["pixel_values_videos"] = self.patches(found["video_grid_thw"], made)
        return found

    def patches(self, grids, made):
        return torch.randn(int(grids.prod(-1).sum()), *self.patch, generator=made)


class TinyQwen2VL(TinyQwen25VL):
    name = "qwen2_vl"
    model_class = Qwen2VLForConditionalGeneration

    def config(self):
        vision = VISION | dict(embed_dim=32, hidden_size=64, mlp_ratio=2)
        return Qwen2VLConfig(text_config=TEXT | MROPE, vision_config=vision, **IDS)


class TinyQwen3VL(TinyQwen25VL):
    """DeepStack planes after layers 0, 1 and 2; timestamps between the frames of a video."""

    name = "qwen3_vl"
    model_class = Qwen3VLForConditionalGeneration
    config_class = Qwen3VLConfig
    more: dict = {}

    def config(self):
        vision = VISION | dict(
            hidden_size=32,
            intermediate_size=48,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0, 1, 2],
            out_hidden_size=64,
        )
        return self.config_class(text_config=TEXT | MROPE | {"head_dim": 16} | self.more, vision_config=vision, **IDS)

    def ids(self, part):
        if isinstance(part, Video):
            frame = [START, *[VIDEO] * (part.h * part.w), END]
            return [token for t in range(part.t) for token in (40 + t, *[7] * (t % 3), *frame)]
        return super().ids(part)


class TinyQwen3VLMoe(TinyQwen3VL):
    name = "qwen3_vl_moe"
    model_class = Qwen3VLMoeForConditionalGeneration
    config_class = Qwen3VLMoeConfig
    more = dict(moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2)


class TinyGlm4V(TinyQwen25VL):
    """Frames of a video have image placeholders, with timestamps between."""

    name = "glm4v"
    model_class = Glm4vForConditionalGeneration
    placeholder = (IMAGE,)
    beams_one_image = True

    config_class = Glm4vConfig
    text: dict = {}
    vision: dict = {}

    def config(self):
        vision = VISION | dict(hidden_size=32, intermediate_size=48, image_size=32, out_hidden_size=64) | self.vision
        ids = dict(image_token_id=IMAGE, video_token_id=VIDEO, image_start_token_id=START, image_end_token_id=END)
        return self.config_class(text_config=TEXT | MROPE | self.text, vision_config=vision, **ids)

    def ids(self, part):
        if isinstance(part, Video):
            frame = [START, *[IMAGE] * (part.h * part.w), END]
            return [88, *[token for t in range(part.t) for token in (*frame, 40 + t)], 89]
        return super().ids(part)

    def extra(self, batch):
        """Image tokens between the marks of a video (88, 89) are its frames."""
        ids = batch["input_ids"]
        inside = (ids == 88).cumsum(1) - (ids == 89).cumsum(1)
        return {"mm_token_type_ids": ((ids == IMAGE) * (1 + inside)).int()}


class TinyGlm46V(TinyGlm4V):
    name = "glm46v"
    model_class = Glm46VForConditionalGeneration
    config_class = Glm46VConfig
    text = {"model_type": "glm4v_text"}
    vision = {"model_type": "glm4v_vision"}


class TinyGlm4VMoe(TinyGlm4V):
    """Half of each head rotated; the first layer dense, the others of four experts."""

    name = "glm4v_moe"
    model_class = Glm4vMoeForConditionalGeneration
    config_class = Glm4vMoeConfig
    text = dict(
        head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        n_shared_experts=1,
        first_k_dense_replace=1,
        rope_parameters=MROPE["rope_parameters"] | {"mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5},
    )
