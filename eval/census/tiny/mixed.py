"""Models of sliding windows, linear layers and sparse attention, Gemma's and others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator
from transformers import (
    AutoModelForImageTextToText,
    DiffusionGemmaConfig,
    Dots3NoteConfig,
    Gemma4Config,
    Gemma4UnifiedConfig,
    Glm5NextConfig,
    InklingConfig,
    Lfm2VlConfig,
    Lfm3VlConfig,
    LightOnOcrConfig,
    MiniCPMOcrConfig,
    MiniCPMV4_6Config,
    MiniCPMV4_7Config,
    MiniMaxM3VLConfig,
    MistralLarge4Config,
    Molmo2Config,
    MuseGlimmerConfig,
    MuseSparkConfig,
    NemotronH_Omni_Reasoning_V3_Config,
    PreTrainedModel,
    ShieldGemma2Config,
    Step3p7Config,
)

from eval.census.tiny.base import END, IMAGE, START, TEXT, VIDEO, Inputs, Tiny, image_types, noise

AUDIO, LOW, COLUMN, TILE, LAST, MARK = 94, 95, 96, 97, 98, 99  # further ids that stand around visual tokens
NEWLINE, DIGIT = 12, 10  # ids of text
HEAD: dict[str, Any] = dict(head_dim=16)
VISION: dict[str, Any] = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
WINDOWS = ["sliding_attention"] * 3 + ["full_attention"]
EXPERTS: dict[str, Any] = dict(moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1)


def gemma4(model_type: str = "gemma4_text", **more: Any) -> dict[str, Any]:
    """A text config: windows in all layers but the last, whose heads are wider."""
    return (
        TEXT
        | HEAD
        | dict(
            model_type=model_type,
            global_head_dim=32,
            sliding_window=8,
            layer_types=WINDOWS,
            hidden_size_per_layer_input=0,
            final_logit_softcapping=30.0,
        )
        | more
    )


GEMMA4_VISION: dict[str, Any] = VISION | dict(
    model_type="gemma4_vision",
    num_key_value_heads=2,
    head_dim=16,
    patch_size=4,
    pooling_kernel_size=3,
    position_embedding_size=16,
)
GEMMA4_IDS: dict[str, Any] = dict(image_token_id=IMAGE, boi_token_id=START, eoi_token_id=END)
MORE_IDS: dict[str, Any] = GEMMA4_IDS | dict(
    video_token_id=VIDEO, audio_token_id=AUDIO, boa_token_id=LOW, eoa_token_index=COLUMN
)


def placed(made: Generator, count: int, rows: int, columns: int, padded: int, width: int) -> Inputs:
    """Patches between 0 and 1 with their places, x first, and padding behind them."""
    pixels = torch.zeros(count, padded, width)
    pixels[:, : rows * columns] = torch.rand(count, rows * columns, width, generator=made)
    places = torch.full((count, padded, 2), -1)
    places[:, : rows * columns] = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(-1)
    return {"pixel_values": pixels, "image_position_ids": places}


def gemma4_tiny(**more: Any) -> Tiny:
    """3 x 3 tokens of 3 x 3 patches each."""
    return Tiny(
        config=lambda: Gemma4Config(text_config=gemma4(**more), vision_config=GEMMA4_VISION, **MORE_IDS),
        media=lambda made, count: placed(made, count, 9, 9, 108, 48),
        ids=[START, *[IMAGE] * 9, END],
        extra=image_types,
    )


def grids(made: Generator, count: int, rows: int, columns: int, width: int) -> Inputs:
    """Patches of `width` values and the grids that they fill."""
    return {
        "pixel_values": noise(made, count * rows * columns, width),
        "image_grid_thw": torch.tensor([[1, rows, columns]] * count),
    }


def shieldgemma2(config: ShieldGemma2Config) -> PreTrainedModel:
    """The generating model inside; its projection starts as zeros, which would make all pictures alike."""
    model = AutoModelForImageTextToText.from_config(config).float()
    with torch.no_grad():
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.1)
    return model


def pooled(made: Generator, count: int) -> Inputs:
    """Molmo 2: three crops of 4 x 4 patches a picture, the whole of 2 x 2 tokens and two that make 2 x 3 together."""
    whole = torch.arange(16).view(4, 4)
    both = torch.cat([16 + whole[:, :3], 32 + whole[:, 1:]], dim=1)
    places = [grid.unfold(0, 2, 2).unfold(1, 2, 2).reshape(-1, 4) for grid in (whole, both)]
    one = torch.cat(places)
    return {
        "pixel_values": noise(made, 3 * count, 16, 48),
        "image_token_pooling": torch.cat([one + 48 * n for n in range(count)]),
        "image_grids": torch.tensor([[2, 2, 2, 3]] * count),
        "image_num_crops": torch.tensor([3] * count),
    }


def molmo2_types(inputs: Inputs) -> Inputs:
    """All that stands between the start and the end of a picture counts as picture."""
    ids = inputs["input_ids"]
    return {"mm_token_type_ids": torch.isin(ids, torch.tensor([IMAGE, START, END, LOW, COLUMN])).long()}


LOUD: dict[str, Any] = dict(initializer_range=0.15)  # at the default of 0.02 no more than 1e-9 arrives of a picture
MUSE: dict[str, Any] = VISION | dict(
    patch_size=4, pos_emb_height=4, pos_emb_width=4, max_position_embeddings=16
)  # windows of 4 x 4 patches in the first layer
PIXTRAL: dict[str, Any] = VISION | dict(model_type="pixtral", head_dim=16, image_size=32, patch_size=4)


def sized(made: Generator, count: int) -> Inputs:
    """Pictures of 4 x 6 patches."""
    return {"pixel_values": noise(made, count, 3, 16, 24), "image_sizes": torch.tensor([[16, 24]] * count)}


def tiled(made: Generator, count: int) -> Inputs:
    """Step 3.7: two tiles of 2 x 2 tokens a picture, one above the other, and the whole of as many."""
    return {
        "pixel_values": noise(made, count, 3, 32, 32),
        "num_local_patches": torch.tensor([2] * count),
        "pixel_values_local": noise(made, 2 * count, 3, 24, 24),
    }


def ragged(made: Generator, count: int) -> Inputs:
    """LFM2: 4 x 6 patches, padded to 32."""
    pixels, mask = torch.zeros(count, 32, 48), torch.zeros(count, 32).long()
    pixels[:, :24], mask[:, :24] = noise(made, count, 24, 48), 1
    return {
        "pixel_values": pixels,
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([[4, 6]] * count),
    }


QWEN35: dict[str, Any] = (
    TEXT
    | HEAD
    | dict(
        model_type="qwen3_5_text",
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        rope_parameters=dict(
            rope_type="default",
            rope_theta=1e4,
            partial_rotary_factor=0.5,
            mrope_section=[2, 1, 1],
            mrope_interleaved=True,
        ),
    )
)
MINICPM: dict[str, Any] = dict(
    text_config=QWEN35,
    vision_config=VISION | dict(image_size=32, patch_size=4),
    insert_layer_id=0,
    image_token_id=IMAGE,
    video_token_id=VIDEO,
)
SLICED = [MARK, DIGIT, MARK, START, *[IMAGE] * 4, END]
SLICED += [TILE, *[IMAGE] * 4, LAST, NEWLINE, TILE, *[IMAGE] * 4, LAST]


def strips(side: int) -> Callable[[Generator, int], Inputs]:
    """MiniCPM-V: the whole and two slices of `side` x `side` patches a picture, all in one strip."""

    def media(made: Generator, count: int) -> Inputs:
        sizes = torch.tensor([[side, side]] * (3 * count), dtype=torch.int32)
        return {"pixel_values": noise(made, 1, 3, 4, 4 * int(sizes.prod(-1).sum())), "target_sizes": sizes}

    return media


LATENT: dict[str, Any] = TEXT | dict(
    num_key_value_heads=4,
    kv_lora_rank=32,
    v_head_dim=16,
    index_head_dim=16,
    index_n_heads=2,
    index_topk=16,  # less than the prompts have, so that it selects
)

TINY: dict[str, Tiny] = {
    "gemma4": gemma4_tiny(),
    "gemma4 bidirectional": gemma4_tiny(
        use_bidirectional_attention="vision", attention_k_eq_v=True, num_global_key_value_heads=1
    ),
    "gemma4 per-layer": gemma4_tiny(hidden_size_per_layer_input=8, vocab_size_per_layer_input=100),
    "gemma4 shared": gemma4_tiny(
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
        layer_types=["sliding_attention", "full_attention"] * 2,
        hidden_size_per_layer_input=8,  # transformers 5.24 cannot run shared layers without
        vocab_size_per_layer_input=100,
    ),
    "gemma4_unified": Tiny(
        config=lambda: Gemma4UnifiedConfig(
            text_config=gemma4("gemma4_unified_text"),
            vision_config=dict(
                patch_size=4, pooling_kernel_size=2, mm_embed_dim=32, mm_posemb_size=16, output_proj_dims=32
            ),
            **MORE_IDS,
        ),
        media=lambda made, count: placed(made, count, 3, 3, 12, 192),
        ids=[START, *[IMAGE] * 9, END],
        extra=image_types,
    ),
    "shieldgemma2": Tiny(
        config=lambda: ShieldGemma2Config(
            text_config=TEXT
            | HEAD
            | dict(model_type="gemma3_text", query_pre_attn_scalar=16, sliding_window=8, layer_types=WINDOWS),
            vision_config=VISION
            | dict(model_type="siglip_vision_model", image_size=24, patch_size=4, vision_use_head=False),
            mm_tokens_per_image=9,
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
        ),
        media=lambda made, count: {"pixel_values": noise(made, count, 3, 24, 24)},
        ids=[START, *[IMAGE] * 9, END],
        extra=lambda inputs: {"token_type_ids": (inputs["input_ids"] == IMAGE).long()},
        make=shieldgemma2,
    ),
    "molmo2": Tiny(
        config=lambda: Molmo2Config(
            # The ids of pictures lie behind the vocabulary that it can write.
            text_config=TEXT | HEAD | dict(vocab_size=90, additional_vocab_size=10),
            vision_config=VISION | dict(num_key_value_heads=2, head_dim=16, image_size=[16, 16], patch_size=4) | LOUD,
            adapter_config=LOUD
            | dict(
                vision_feature_layer=[1, 0],
                hidden_size=32,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=16,
                intermediate_size=64,
                text_hidden_size=64,
            ),
            image_start_token_id=START,
            image_end_token_id=END,
            image_patch_id=IMAGE,
            low_res_image_start_token_id=LOW,
            frame_start_token_id=TILE,
            frame_end_token_id=LAST,
        ),
        media=pooled,
        ids=[LOW, *[IMAGE, IMAGE, COLUMN] * 2, END, START, *[*[IMAGE] * 3, COLUMN] * 2, END],
        extra=molmo2_types,
    ),
    "muse_glimmer": Tiny(
        config=lambda: MuseGlimmerConfig(
            text_config=TEXT | HEAD | dict(sliding_window=8),
            vision_config=MUSE,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            out_hidden_size=128,
            projector_hidden_size=32,
        ),
        media=lambda made, count: grids(made, count, 4, 6, 96),
        ids=[START, *[IMAGE] * 6, END],
    ),
    "muse_spark": Tiny(
        config=lambda: MuseSparkConfig(
            text_config=TEXT
            | HEAD
            | dict(
                sliding_window=8,
                moe_intermediate_size=32,
                moe_hidden_size=32,
                num_local_experts=4,
                num_experts_per_tok=2,
            ),
            vision_config=MUSE,
            audio_config=dict(
                patch_sizes=[4, 2], hidden_sizes=[8, 16], depths=[1, 1], num_hidden_layers=2, out_hidden_size=64
            ),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
            out_hidden_size=128,
            projector_hidden_size=32,
        ),
        media=lambda made, count: grids(made, count, 4, 6, 96),
        ids=[START, *[IMAGE] * 6, END],
    ),
    "lighton_ocr": Tiny(
        config=lambda: LightOnOcrConfig(
            text_config=TEXT | HEAD | dict(model_type="qwen3"), vision_config=PIXTRAL, image_token_id=IMAGE
        ),
        media=sized,
        ids=[IMAGE] * 6,
    ),
    "step3p7": Tiny(
        config=lambda: Step3p7Config(
            text_config=TEXT
            | HEAD
            | dict(
                layer_types=["full_attention", *["sliding_attention"] * 3],
                sliding_window=8,
                num_sliding_attention_heads=6,
                mlp_layer_types=["dense", *["sparse"] * 3],
                rope_theta=[1e6, 1e4, 1e4, 1e4],
                partial_rotary_factors=[0.5, 1.0, 1.0, 1.0],
                moe_intermediate_size=32,
                n_routed_experts=4,
                num_experts_per_tok=2,
                share_expert_dim=32,
            ),
            vision_config=VISION | dict(image_size=32, patch_size=4, mlp_ratio=2.0, max_position_embeddings=64),
            image_token_id=IMAGE,
        ),
        media=tiled,
        ids=[TILE, *[IMAGE] * 4, LAST, MARK, TILE, *[IMAGE] * 4, LAST, START, *[IMAGE] * 4, END],
    ),
    "minimax_m3_vl": Tiny(
        config=lambda: MiniMaxM3VLConfig(
            text_config=TEXT
            | HEAD
            | dict(
                layer_types=["full_attention", *["minimax_m3_sparse"] * 3],
                mlp_layer_types=["dense", *["sparse"] * 3],
                rotary_dim=8,
                num_local_experts=4,
                num_experts_per_tok=2,
                intermediate_size=32,
                dense_intermediate_size=96,
                shared_intermediate_size=32,
                index_n_heads=2,
                index_head_dim=16,
                index_block_size=4,
                index_topk_blocks=4,
            ),
            vision_config=VISION | dict(image_size=32, patch_size=4),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            projector_hidden_size=32,
        ),
        media=lambda made, count: grids(made, count, 4, 6, 96),
        ids=[START, *[IMAGE] * 6, END],
    ),
    "lfm2_vl": Tiny(
        config=lambda: Lfm2VlConfig(
            text_config=TEXT
            | dict(
                model_type="lfm2",
                layer_types=["conv", "conv", "full_attention", "conv"],
                block_multiple_of=8,
            ),
            vision_config=VISION
            | dict(model_type="siglip2_vision_model", num_patches=64, patch_size=4, vision_use_head=False),
            image_token_id=IMAGE,
            projector_hidden_size=32,
        ),
        media=ragged,
        ids=[START, *[IMAGE] * 6, END],
    ),
    "lfm3_vl": Tiny(
        config=lambda: Lfm3VlConfig(
            text_config=TEXT
            | HEAD
            | dict(
                model_type="lfm3",
                layer_types=["conv", "full_attention", "conv", "sliding_attention"],
                sliding_window=8,
            ),
            vision_config=VISION | dict(num_key_value_heads=1, patch_size=4, layer_types=["conv", "full_attention"]),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
            projector_hidden_size=32,
        ),
        media=lambda made, count: grids(made, count, 4, 6, 96),
        ids=[START, *[IMAGE] * 6, END],
    ),
    "nemotron_h_omni": Tiny(
        config=lambda: NemotronH_Omni_Reasoning_V3_Config(
            text_config=TEXT
            | HEAD
            | dict(
                model_type="nemotron_h",
                layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
                ssm_state_size=8,
                mamba_num_heads=4,
                mamba_head_dim=16,
                n_groups=2,
                chunk_size=8,
                n_routed_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=32,
                moe_shared_expert_intermediate_size=32,
            ),
            vision_config=dict(
                model_type="radio",
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                mlp_ratio=2.0,
                patch_size=4,
                image_size=32,
                max_img_size=32,
                video_temporal_patch_size=2,
            ),
            projector_hidden_size=32,
            vision_hidden_size=32,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        media=lambda made, count: {
            "pixel_values": noise(made, count * 24, 48),
            "image_grid_hw": torch.tensor([[4, 6]] * count),
        },
        ids=[START, *[IMAGE] * 6, END],
    ),
    "minicpmv4_6": Tiny(config=lambda: MiniCPMV4_6Config(**MINICPM), media=strips(8), ids=SLICED),
    "minicpmv4_7": Tiny(
        config=lambda: MiniCPMV4_7Config(
            **MINICPM,
            image_start_id=START,
            image_end_id=END,
            slice_start_id=TILE,
            slice_end_id=LAST,
            newline_id=NEWLINE,
        ),
        media=strips(8),
        ids=SLICED,
        extra=image_types,
    ),
    "minicpm_ocr": Tiny(config=lambda: MiniCPMOcrConfig(**MINICPM), media=strips(4), ids=SLICED),
    "inkling_mm_model": Tiny(
        config=lambda: InklingConfig(
            text_config=TEXT
            | HEAD
            | EXPERTS
            | dict(
                swa_num_attention_heads=4,
                swa_num_key_value_heads=4,
                swa_head_dim=16,
                sliding_window_size=8,
                layer_types=["hybrid_sliding"] * 3 + ["hybrid"],
                mlp_layer_types=["dense", *["sparse"] * 3],
                d_rel=4,
                rel_extent=16,
                logits_mup_width_multiplier=1.0,
            ),
            vision_config=dict(patch_size=4, hidden_size=32, num_hidden_layers=4, num_attention_heads=2),
            audio_config=dict(n_mel_bins=4, mel_vocab_size=8),
            image_token_id=IMAGE,
            image_bos_token_id=START,
            audio_token_id=AUDIO,
            audio_bos_token_id=LOW,
        ),
        media=lambda made, count: {"pixel_values": noise(made, count * 6, 2, 4, 4, 3)},
        ids=[START, *[IMAGE] * 6, END],
    ),
    "mistral_large4": Tiny(
        config=lambda: MistralLarge4Config(
            text_config=LATENT | EXPERTS | dict(qk_rope_head_dim=8, qk_nope_head_dim=8),
            vision_config=PIXTRAL,
            image_token_index=IMAGE,
        ),
        media=sized,
        ids=[*[IMAGE] * 3, COLUMN, *[IMAGE] * 3, END],
    ),
    "dots3_note": Tiny(
        config=lambda: Dots3NoteConfig(
            text_config=LATENT
            | HEAD
            | EXPERTS
            | dict(
                q_lora_rank=32,
                qk_rope_head_dim=8,
                qk_nope_head_dim=8,
                shared_experts_intermediate_size=32,
                sliding_window=8,
                swa_num_attention_heads=2,
                swa_num_key_value_heads=2,
                swa_q_lora_rank=32,
                swa_kv_lora_rank=32,
                swa_head_dim=16,
                swa_qk_nope_head_dim=8,
                swa_v_head_dim=16,
            ),
            vision_config=VISION
            | dict(
                patch_size=4,
                moe_intermediate_size=32,
                pyramid_num_routed=[-1, 4],
                adapter_in_dim=32,
                adapter_out_dim=64,
            ),
            audio_config=dict(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                feature_size=16,
                downsample_hidden_size=8,
                adapter_input_size=32,
                adapter_out_dim=64,
            ),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
        ),
        media=lambda made, count: grids(made, count, 4, 6, 48),
        ids=[START, *[IMAGE] * 6, END],
    ),
    "glm5_next": Tiny(
        config=lambda: Glm5NextConfig(
            text_config=LATENT
            | EXPERTS
            | dict(
                q_lora_rank=32,
                qk_nope_head_dim=16,
                index_kpool=4,
                linear_head_dim=16,
                linear_num_heads=4,
            ),
            vision_config=dict(
                depth=2,
                hidden_size=32,
                num_heads=2,
                image_size=32,
                patch_size=4,
                out_hidden_size=64,
                intermediate_size=64,
                projection_intermediate_size=64,
            ),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            image_start_token_id=START,
            image_end_token_id=END,
            video_start_token_id=TILE,
            video_end_token_id=LAST,
        ),
        media=lambda made, count: grids(made, count, 4, 6, 96),
        ids=[START, *[IMAGE] * 6, END],
        extra=image_types,
    ),
    "diffusion_gemma": Tiny(
        config=lambda: DiffusionGemmaConfig(
            text_config=TEXT
            | HEAD
            | dict(
                global_head_dim=32,
                sliding_window=8,
                layer_types=WINDOWS,
                num_experts=4,
                top_k_experts=2,
                moe_intermediate_size=32,
                use_bidirectional_attention="vision",
            ),
            vision_config=GEMMA4_VISION,
            canvas_length=8,
            **GEMMA4_IDS,
        ),
        media=lambda made, count: placed(made, count, 9, 9, 108, 48),
        ids=[START, *[IMAGE] * 9, END],
        extra=image_types,
    ),
}
