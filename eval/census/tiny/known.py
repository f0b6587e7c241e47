"""Models that have a family of their own: the LLaVA, Qwen-VL, GLM-V and Idefics lines, and single ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Generator, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    FastVlmConfig,
    Gemma3Config,
    Glm4vConfig,
    Glm4vMoeConfig,
    Glm46VConfig,
    Idefics3Config,
    InternVLConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextVideoConfig,
    LlavaOnevisionConfig,
    Mistral3Config,
    PaliGemmaConfig,
    PerceptionLMConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    SmolVLMConfig,
    VideoLlavaConfig,
    VipLlavaConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from eval.census.tiny.base import END, IMAGE, START, TEXT, VIDEO, Inputs, Tiny, image_types, noise

BREAK, GLOBAL, TILE = 94, 95, 96  # further ids that stand around visual tokens; the tiles count up from the last
NEWLINE, NEWLINES = 10, 11  # ids of text
H, W = 3, 4  # visual tokens of a picture where the model takes any size

LLAMA = TEXT | {"model_type": "llama"}
QWEN2 = TEXT | {"model_type": "qwen2"}
TOWER: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8
)  # 3 x 3 patches
TILES = TOWER | dict(image_size=16, patch_size=4)  # 4 x 4 patches, 2 x 2 tokens where these are merged
CLIP = {"model_type": "clip_vision_model"}
SIGLIP = dict(model_type="siglip_vision_model", vision_use_head=False)
GRID: dict[str, Any] = dict(
    depth=2,
    num_heads=2,
    hidden_size=32,
    intermediate_size=48,
    out_hidden_size=64,
    patch_size=4,
    spatial_merge_size=2,
    temporal_patch_size=2,
)


def squares(made: Generator, count: int) -> Inputs:
    return {"pixel_values": noise(made, count, 3, 24, 24)}


def three_tiles(made: Generator, count: int) -> Inputs:
    """Two tiles and the whole of each picture, one behind the other."""
    return {"pixel_values": noise(made, 3 * count, 3, 16, 16)}


def tiled_rows(made: Generator, count: int) -> Inputs:
    """Two tiles and the whole of each picture, padded with empty tiles: one picture in the first of two rows."""
    there = torch.ones(2, 3 * (count - 1), 1, 1).long()
    there[0, 3:] = 0
    return {
        "pixel_values": noise(made, *there.shape[:2], 3, 16, 16) * there[..., None],
        "pixel_attention_mask": there.repeat(1, 1, 16, 16),
    }


def anyres(made: Generator, count: int) -> Inputs:
    """The whole and two tiles side by side."""
    return {"pixel_values": noise(made, count, 3, 3, 16, 16), "image_sizes": torch.tensor([[16, 32]] * count)}


def grids(made: Generator, count: int) -> Inputs:
    grid = torch.tensor([[1, 2 * H, 2 * W]] * count)
    return {"pixel_values": noise(made, int(grid.prod(-1).sum()), 3 * 2 * 4 * 4), "image_grid_thw": grid}


def rope(sections: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_parameters": dict(rope_type="default", rope_theta=1e4, mrope_section=sections, **more)}


def llava(config: type[PreTrainedConfig], **more: Any) -> Tiny:
    return Tiny(
        config=lambda: config(text_config=LLAMA, vision_config=TOWER | CLIP, image_token_index=IMAGE, **more),
        media=squares,
        ids=[IMAGE] * 9,
    )


def llava_next(
    config: type[PreTrainedConfig], text: dict[str, Any], vision: dict[str, Any], videos: bool = True
) -> Tiny:
    more = {"video_token_index": VIDEO} if videos else {}
    return Tiny(
        config=lambda: config(
            text_config=text,
            vision_config=TOWER | vision | {"image_size": 16},
            image_grid_pinpoints=[[16, 32], [32, 16]],
            image_token_index=IMAGE,
            **more,
        ),
        media=anyres,
        ids=[IMAGE] * 14,  # the whole, 2 x 2, and 2 x 4 with the ends of rows
    )


def qwen(config: type[PreTrainedConfig], text: dict[str, Any], vision: dict[str, Any]) -> Tiny:
    return Tiny(
        config=lambda: config(
            text_config=TEXT | text,
            vision_config=GRID | vision,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        ),
        media=grids,
        ids=[START, *[IMAGE] * (H * W), END],
        extra=image_types,
    )


def qwen3(config: type[PreTrainedConfig], **more: Any) -> Tiny:
    # As released, three planes of the deep stack, which go into the first three decoder layers.
    vision = dict(depth=3, deepstack_visual_indexes=[0, 1, 2], num_position_embeddings=64)
    return qwen(config, rope([4, 2, 2], mrope_interleaved=True) | dict(head_dim=16) | more, vision)


def glm(config: type[PreTrainedConfig], text: dict[str, Any], vision: dict[str, Any]) -> Tiny:
    return Tiny(
        config=lambda: config(
            text_config=TEXT | rope([1, 1, 2], partial_rotary_factor=0.5) | text,
            vision_config=GRID | dict(image_size=32) | vision,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            image_start_token_id=START,
            image_end_token_id=END,
        ),
        media=grids,
        ids=[START, *[IMAGE] * (H * W), END],
        extra=image_types,
    )


def idefics(config: type[PreTrainedConfig]) -> Tiny:
    tile = [IMAGE] * 4
    return Tiny(
        config=lambda: config(text_config=LLAMA, vision_config=TILES, image_token_id=IMAGE, scale_factor=2),
        media=tiled_rows,
        ids=[
            *(START, TILE, *tile, START, TILE + 1, *tile, NEWLINE),
            *(NEWLINE, START, GLOBAL, *tile, START),
        ],  # the same mark before each tile and behind the whole
    )


def gemma3(config: Gemma3Config) -> PreTrainedModel:
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").float()
    with torch.no_grad():  # zeros by default, which would make all pictures alike
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.1)
    return model


class StandInConfig(PreTrainedConfig):
    """Stands in for the encoders of fast_vlm and perception_lm, which need timm: all behind these is theirs."""

    model_type = "census_stand_in"

    def __init__(self, width: int = 32, patch: int = 8, flat: bool = False, **kwargs: Any) -> None:
        self.hidden_size, self.patch, self.flat = width, patch, flat
        self.model_args = {"embed_dim": width}
        super().__init__(**kwargs)


class StandIn(PreTrainedModel):
    """One strided convolution: a map [N, C, H, W] as FastViT gives, or tokens with a CLS in front as PE gives."""

    config_class = StandInConfig
    _supports_sdpa = _supports_attention_backend = True

    def __init__(self, config: StandInConfig) -> None:
        super().__init__(config)
        self.conv = nn.Conv2d(3, config.hidden_size, config.patch, config.patch)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        states = self.conv(pixel_values)
        if self.config.flat:
            tokens = states.flatten(2).transpose(1, 2)
            states = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
        return BaseModelOutputWithPooling(last_hidden_state=states)


AutoConfig.register(StandInConfig.model_type, StandInConfig)
AutoModel.register(StandInConfig, StandIn)


TINY: dict[str, Tiny] = {
    "llava": llava(LlavaConfig, image_seq_length=9),
    "vipllava": llava(VipLlavaConfig, image_seq_length=9, vision_feature_layer=[-2, 2]),
    "video_llava": llava(VideoLlavaConfig, image_seq_length=9, video_token_index=VIDEO),
    "llava_next": llava_next(LlavaNextConfig, LLAMA, CLIP, videos=False),
    "llava_next_video": llava_next(LlavaNextVideoConfig, LLAMA, CLIP),
    "llava_onevision": replace(
        llava_next(LlavaOnevisionConfig, QWEN2, SIGLIP),
        # A list of pictures that is not nested: each counts as the only one of its prompt, and is cut.
        media=lambda made, count: anyres(made, count) | {"batch_num_images": torch.tensor([1] * count)},
    ),
    "qwen2_vl": qwen(Qwen2VLConfig, rope([2, 3, 3]), dict(embed_dim=32, hidden_size=64, mlp_ratio=2)),
    "qwen2_5_vl": qwen(Qwen2_5_VLConfig, rope([2, 3, 3]), dict(window_size=16, fullatt_block_indexes=[1])),
    "qwen3_vl": qwen3(Qwen3VLConfig),
    "qwen3_vl_moe": qwen3(Qwen3VLMoeConfig, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2),
    "glm4v": glm(Glm4vConfig, {}, {}),
    "glm46v": glm(Glm46VConfig, {"model_type": "glm4v_text"}, {"model_type": "glm4v_vision"}),
    "glm4v_moe": glm(
        Glm4vMoeConfig,
        dict(
            head_dim=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            n_shared_experts=1,
            first_k_dense_replace=1,
        ),
        {},
    ),
    "internvl": Tiny(
        config=lambda: InternVLConfig(text_config=QWEN2, vision_config=TILES, image_token_id=IMAGE, image_seq_length=4),
        media=three_tiles,
        ids=[START, *[IMAGE] * 12, END],
    ),
    "smolvlm": idefics(SmolVLMConfig),
    "idefics3": idefics(Idefics3Config),
    "gemma3": Tiny(
        config=lambda: Gemma3Config(
            text_config=TEXT
            | dict(
                head_dim=16,
                query_pre_attn_scalar=16,
                sliding_window=8,
                # One full layer behind five with a window, as released, has no place in four layers.
                layer_types=["sliding_attention"] * 3 + ["full_attention"],
            ),
            vision_config=TOWER | SIGLIP | dict(patch_size=4),
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
            mm_tokens_per_image=9,
        ),
        media=squares,
        ids=[NEWLINES, START, *[IMAGE] * 9, END, NEWLINES],
        extra=lambda inputs: {"token_type_ids": image_types(inputs)["mm_token_type_ids"]},
        make=gemma3,
    ),
    "paligemma": Tiny(
        config=lambda: PaliGemmaConfig(
            text_config=TEXT | dict(model_type="gemma", head_dim=16),
            vision_config=TOWER | SIGLIP,
            image_token_index=IMAGE,
            vocab_size=100,
            projection_dim=64,
            hidden_size=64,
        ),
        media=squares,
        ids=[IMAGE] * 9,
        # The prompt is all prefix; ones would be a suffix to be learnt.
        extra=lambda inputs: {"token_type_ids": torch.zeros_like(inputs["input_ids"])},
    ),
    "mistral3": Tiny(
        config=lambda: Mistral3Config(
            # None as released, but the text model's default is a window in every layer, which asks more.
            text_config=TEXT | dict(model_type="mistral", head_dim=16, sliding_window=8),
            vision_config=TOWER | dict(model_type="pixtral", head_dim=16, image_size=64, patch_size=4),
            image_token_index=IMAGE,
        ),
        media=lambda made, count: {
            "pixel_values": noise(made, count, 3, 8 * H, 8 * W),
            "image_sizes": torch.tensor([[8 * H, 8 * W]] * count),
        },
        ids=[*([IMAGE] * W + [BREAK]) * (H - 1), *[IMAGE] * W, END],
    ),
    "fast_vlm": Tiny(
        note="with a stand-in for its vision encoder, which needs timm",
        config=lambda: FastVlmConfig(
            text_config=QWEN2, vision_config=StandInConfig(), image_token_index=IMAGE, image_seq_length=9
        ),
        media=squares,
        ids=[IMAGE] * 9,
    ),
    "perception_lm": Tiny(
        note="with a stand-in for its vision encoder, which needs timm",
        config=lambda: PerceptionLMConfig(
            text_config=LLAMA,
            vision_config=StandInConfig(patch=4, flat=True),
            projector_pooling_ratio=2,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        media=lambda made, count: {"pixel_values": noise(made, count, 3, 3, 16, 16)},
        ids=[IMAGE] * 12,  # the whole and two tiles, 2 x 2 each
    ),
}
