"""Models that take packed patches of pictures of any size, most of them with positions in rows and columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    CohereCompassConfig,
    Cosmos3EdgeConfig,
    Cosmos3OmniConfig,
    Ernie4_5_VLMoeConfig,
    Exaone4_5_Config,
    GlmgaConfig,
    GlmOcrConfig,
    HunYuanVLConfig,
    HyperCLOVAXVisionV2Config,
    HYV4VLConfig,
    Kimi_K25Config,
    PaddleOCRVLConfig,
    PreTrainedModel,
    Qwen2_5OmniThinkerConfig,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3OmniMoeThinkerConfig,
    Qwen4ExpConfig,
    VideoLlama3Config,
)

from eval.census.tiny.base import END, IMAGE, START, TEXT, VIDEO, Inputs, Tiny, image_types, noise

NEWLINE, CONTENT, AUDIO = 12, 94, 95
HEIGHT, WIDTH, PATCH = 4, 8, 4  # of a picture, in patches; of a patch, in pixels
COUNT = HEIGHT * WIDTH // 4  # tokens, each of 2 x 2 patches

IDS: dict[str, Any] = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END
)
GLM_IDS: dict[str, Any] = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, image_start_token_id=START, image_end_token_id=END
)
VISION: dict[str, Any] = dict(
    depth=2, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=PATCH, spatial_merge_size=2
)
FRAMES = VISION | dict(temporal_patch_size=2, out_hidden_size=64)
WINDOWS = FRAMES | dict(window_size=16, fullatt_block_indexes=[1])
DEEP = FRAMES | dict(num_position_embeddings=64, deepstack_visual_indexes=[0, 1])
SIGLIP: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, patch_size=PATCH
)
AUDIO_ENCODER: dict[str, Any] = dict(
    num_mel_bins=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, d_model=32, output_dim=64
)
ROPE: dict[str, Any] = dict(rope_type="default", rope_theta=1e4, mrope_section=[4, 2, 2])
MROPE = TEXT | dict(rope_parameters=ROPE)
MIXED = ROPE | dict(mrope_interleaved=True)
EXPERTS: dict[str, Any] = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
MLA: dict[str, Any] = dict(
    q_lora_rank=32,
    kv_lora_rank=16,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
    num_key_value_heads=4,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
)
LINEAR = TEXT | dict(
    head_dim=32,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    rope_parameters=MIXED | dict(mrope_section=[2, 1, 1], partial_rotary_factor=0.25),
)  # three linear layers and one of attention


def patches(*patch: int, height: int = HEIGHT, width: int = WIDTH) -> Callable[[torch.Generator, int], Inputs]:
    """Pixel inputs of pictures of `height` x `width` patches of the shape `patch`."""
    return lambda made, count: {
        "pixel_values": noise(made, count * height * width, *patch),
        "image_grid_thw": torch.tensor([[1, height, width]] * count),
    }


def unmerged(made: torch.Generator, count: int) -> Inputs:
    """Pixel inputs of pictures with a token for each patch, unlike frames of videos."""
    pixels = patches(3 * PATCH * PATCH, height=HEIGHT // 2, width=WIDTH // 2)(made, count)
    return pixels | {"image_merge_sizes": torch.ones(count, dtype=torch.int64)}


FLAT = patches(3 * PATCH * PATCH)
SQUARE = patches(3, PATCH, PATCH)
DOUBLE = patches(3 * 2 * PATCH * PATCH)  # a picture is two frames that are alike


def no_types(inputs: Inputs) -> Inputs:
    """What processors give that make no types."""
    return {}


def ernie_types(inputs: Inputs) -> Inputs:
    """Types for positions, and those for experts, which count the marks around a picture as picture."""
    ids = inputs["input_ids"]
    return image_types(inputs) | {"moe_mm_token_type_ids": ((ids == IMAGE) | (ids == START) | (ids == END)).long()}


def eager(config: Any) -> PreTrainedModel:
    """Eager attention in the text model, which has no other, and sdpa in the vision encoder."""
    return AutoModelForImageTextToText.from_config(config).float()


def qwen4(config: Qwen4ExpConfig) -> PreTrainedModel:
    """With weights in the convolutions over n-grams, which are 0 at first, so that they tell neighbours apart."""
    model = AutoModelForImageTextToText.from_config(config).float()
    model.generation_config.eos_token_id = None
    for layer in model.model.language_model.layers:
        if layer.ple is not None:
            nn.init.ones_(layer.ple.norm_conv.weight)
            nn.init.normal_(layer.ple.conv1d.weight, std=0.2)
    return model


def grid(config: Callable[[], Any], media: Callable[[torch.Generator, int], Inputs] = DOUBLE, **changes: Any) -> Tiny:
    """A model whose pictures stand between marks."""
    return Tiny(**dict(config=config, media=media, ids=[START, *[IMAGE] * COUNT, END], extra=image_types) | changes)


TINY: dict[str, Tiny] = {
    "qwen2_5_omni_thinker": grid(
        lambda: Qwen2_5OmniThinkerConfig(
            text_config=MROPE,
            vision_config=WINDOWS,
            audio_config=AUDIO_ENCODER,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            audio_token_index=AUDIO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        ),
        extra=no_types,
    ),
    "qwen3_omni_moe_thinker": grid(
        lambda: Qwen3OmniMoeThinkerConfig(
            text_config=TEXT | EXPERTS | dict(rope_parameters=MIXED, head_dim=16),
            vision_config=DEEP,
            audio_config=AUDIO_ENCODER | dict(downsample_hidden_size=8),
            audio_token_id=AUDIO,
            **IDS,
        ),
        extra=no_types,
    ),
    "paddleocr_vl": grid(
        lambda: PaddleOCRVLConfig(
            text_config=MROPE | dict(head_dim=16),
            vision_config=SIGLIP | dict(image_size=24, spatial_merge_size=2),
            **IDS,
        ),
        SQUARE,
    ),
    "glm_ocr": grid(
        lambda: GlmOcrConfig(text_config=MROPE, vision_config=FRAMES | dict(image_size=32), **GLM_IDS),
    ),
    "glmga": grid(
        lambda: GlmgaConfig(
            text_config=MROPE | dict(model_type="glm4v_text"),
            vision_config=FRAMES | dict(model_type="glm4v_vision", image_size=32),
            **GLM_IDS,
        ),
    ),
    "ernie4_5_vl_moe": grid(
        lambda: Ernie4_5_VLMoeConfig(
            text_config=TEXT
            | dict(
                rope_parameters=ROPE | dict(mrope_section=[3, 3, 2]),
                moe_num_experts=4,
                moe_k=2,
                moe_intermediate_size=[32, 16],
            ),
            vision_config=VISION,
            **GLM_IDS,
        ),
        FLAT,
        extra=ernie_types,
    ),
    "hunyuan_vl": grid(
        lambda: HunYuanVLConfig(
            text_config=TEXT
            | dict(
                head_dim=16,
                rope_parameters=dict(
                    rope_type="xdrope", rope_theta=1e4, alpha=1000.0, factor=1.0, xdrope_section=[2, 2, 2, 2]
                ),
            ),
            vision_config=SIGLIP | dict(max_image_size=32, out_hidden_size=64),
            image_token_id=IMAGE,
            im_start_id=START,
            im_end_id=END,
            im_newline_id=CONTENT,
        ),
        FLAT,
        # also an image token at the end of each row and one before and after them
        ids=[START, *[IMAGE] * (COUNT + HEIGHT // 2 + 2), END],
    ),
    "cosmos3_omni": grid(
        lambda: Cosmos3OmniConfig(
            text_config=TEXT | dict(model_type="qwen3_vl_text", rope_parameters=MIXED, head_dim=16),
            vision_config=DEEP | dict(model_type="qwen3_vl_vision"),
            **IDS,
        ),
    ),
    "cosmos3_edge": grid(
        lambda: Cosmos3EdgeConfig(
            text_config=MROPE | dict(head_dim=16),
            vision_config=SIGLIP | dict(num_patches=36),
            projector_hidden_size=48,
            **IDS,
        ),
        FLAT,
    ),
    "cohere_compass": grid(
        lambda: CohereCompassConfig(
            text_config=TEXT
            | dict(
                sliding_window=8,
                layer_types=["sliding_attention"] * 3 + ["full_attention"],
                rope_parameters={"sliding_attention": ROPE, "full_attention": None},
                logit_scale=0.25,
            ),
            vision_config=DEEP,
            **IDS,
        ),
    ),
    "exaone4_5": grid(
        lambda: Exaone4_5_Config(
            text_config=TEXT | dict(model_type="exaone4", sliding_window=8, sliding_window_pattern=4),
            vision_config=WINDOWS | dict(num_key_value_heads=1),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        extra=no_types,
    ),
    "hyperclovax_vision_v2": grid(
        lambda: HyperCLOVAXVisionV2Config(
            text_config=TEXT
            | dict(
                model_type="hyperclovax", embedding_multiplier=10.0, logits_scaling=0.125, attention_multiplier=1 / 16
            ),
            vision_config=WINDOWS | dict(model_type="qwen2_5_vl_vision"),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        extra=no_types,
    ),
    "video_llama_3": grid(
        lambda: VideoLlama3Config(
            text_config=TEXT | dict(model_type="qwen2"),
            vision_config=SIGLIP,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        unmerged,
        ids=[*[IMAGE] * COUNT, NEWLINE],
        extra=no_types,
    ),
    "kimi_k25": grid(
        lambda: Kimi_K25Config(
            text_config=TEXT
            | MLA
            | dict(
                model_type="deepseek_v3",
                n_group=1,
                topk_group=1,
                first_k_dense_replace=1,
                rope_parameters=dict(
                    rope_type="yarn",
                    rope_theta=5e4,
                    factor=64.0,
                    beta_fast=32.0,
                    beta_slow=1.0,
                    mscale=1.0,
                    mscale_all_dim=1.0,
                    original_max_position_embeddings=64,
                ),
                max_position_embeddings=4096,
            ),
            vision_config=SIGLIP | dict(pos_emb_height=6, pos_emb_width=6),
            projection_hidden_size=32,
            **IDS,
        ),
        SQUARE,
        ids=[START, 20, CONTENT, *[IMAGE] * COUNT, END, NEWLINE],
        extra=no_types,
    ),
    "hy_v4_vl": grid(
        lambda: HYV4VLConfig(
            text_config=TEXT
            | MLA
            | dict(
                initializer_range=0.02,  # with the default of 0.006 pictures hardly matter
                index_topk=8,
                index_head_dim=16,
                index_n_heads=16,  # of few heads, all often score 0, and ties fall as padding has it
                rope_parameters=ROPE | dict(mrope_section=[2, 1, 1]),
            ),
            vision_config=SIGLIP | dict(max_image_size=32, out_hidden_size=64),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        FLAT,
        ids=[START, *[IMAGE] * (COUNT + HEIGHT // 2), END],  # also an image token at the end of each row
        make=eager,
    ),
    "qwen3_5": grid(
        lambda: Qwen3_5Config(text_config=LINEAR, vision_config=FRAMES | dict(num_position_embeddings=64), **IDS),
    ),
    "qwen3_5_moe": grid(
        lambda: Qwen3_5MoeConfig(
            text_config=LINEAR | EXPERTS | dict(shared_expert_intermediate_size=32),
            vision_config=FRAMES | dict(num_position_embeddings=64),
            **IDS,
        ),
    ),
    "qwen4_exp": grid(
        lambda: Qwen4ExpConfig(
            text_config=LINEAR
            | EXPERTS
            | dict(
                shared_expert_intermediate_size=32,
                hc_lowrank=8,
                ple_layer_ids=[1],
                heads_per_ngram=2,
                ngram_vocab_size_base=31,
                make_ngram_vocab_size_divisible_by=8,
                indexer_n_heads=16,  # against ties, as above
                indexer_kv_heads=1,
                indexer_head_dim=16,
                indexer_budget=8,
                indexer_compress_ratio=2,
                eos_token_id=99,
            ),
            vision_config=FRAMES | dict(num_position_embeddings=64),
            **IDS,
        ),
        make=qwen4,
    ),
}
