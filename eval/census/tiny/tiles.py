"""Models of documents, of tiles and of codebooks, and those that generate pictures too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn
from transformers import (
    Apertus1p5Config,
    AriaConfig,
    AutoModelForImageTextToText,
    ChameleonConfig,
    DeepseekOcr2Config,
    DeepseekVLConfig,
    DeepseekVLHybridConfig,
    Emu3Config,
    FuyuConfig,
    GotOcr2Config,
    Granite4VisionConfig,
    GraniteDoclingConfig,
    Idefics2Config,
    JanusConfig,
    Llama4Config,
    Ovis2Config,
    Phi4MultimodalConfig,
    Phi4MultimodalForCausalLM,
    PPChart2TableConfig,
    PreTrainedModel,
    QianfanOCRConfig,
    UnlimitedOcrConfig,
)

from eval.census.tiny.base import BOS, END, IMAGE, PAD, START, TEXT, Inputs, Tiny, noise

MARK, LINE, TILE, LAST = 94, 95, 96, 97  # further ids that stand in the prompt around or between visual tokens
DIGIT, TIMES, NEWLINE = 10, 11, 12  # ids of text
CODES = (*range(80, 90), 98, 99)  # ids that a codebook's entries have in the vocabulary

TOWER: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8
)  # 3 x 3 patches
SIGLIP = TOWER | dict(model_type="siglip_vision_model", vision_use_head=False)
TILES = TOWER | dict(image_size=16, patch_size=4)  # 4 x 4 patches, 2 x 2 tokens where these are merged
SAM: dict[str, Any] = dict(
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
)  # 12 x 12 patches, 3 x 3 behind two strided convolutions
MOE: dict[str, Any] = dict(
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_shared_experts=2,
    moe_intermediate_size=32,
    n_group=1,
    topk_group=1,
    mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
)
GRANITE: dict[str, Any] = dict(
    embedding_multiplier=12.0, logits_scaling=4.0, residual_multiplier=0.22, attention_multiplier=1 / 16
)


def rows(made: Generator, count: int, tiles: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tiles [B, T, 3, side, side] of a batch whose first row has one picture and whose second the others, and which of
    the tiles are there, bool [B, T]."""
    pictures = torch.tensor([1, count - 1] if count > 1 else [1])
    there = torch.arange(int(pictures.max()) * tiles) < pictures[:, None] * tiles
    return noise(made, *there.shape, 3, side, side) * there[..., None, None, None], there


def mixed(config: Any) -> PreTrainedModel:
    """Each part with the attention that it has by default: some vision encoders have no sdpa and refuse it for all."""
    return AutoModelForImageTextToText.from_config(config).float()


def idefics2(config: Idefics2Config) -> PreTrainedModel:
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").float()
    with torch.no_grad():  # ones by default, which would make all tokens of a picture alike
        model.model.connector.perceiver_resampler.latents.normal_(std=0.02)
    return model


def idefics2_media(made: Generator, count: int) -> Inputs:
    pixels, there = rows(made, count, 1, 24)
    return {"pixel_values": pixels, "pixel_attention_mask": there[..., None, None].repeat(1, 1, 24, 24).long()}


def deepseek_ocr2(config: DeepseekOcr2Config) -> PreTrainedModel:
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").float()
    # The number of queries, which is that of the tokens of a tile, is not in the config: 144 of each.
    model.model.vision_tower.query_768_resolution = nn.Embedding.from_pretrained(0.02 * torch.randn(4, 32))
    return model


def unlimited_ocr_media(made: Generator, count: int) -> dict[str, Any]:
    """Lists where the processor gives lists: no picture here is so large that it is cut."""
    return {
        "pixel_values": noise(made, count, 3, 48, 48),
        "num_local_patches": [0] * count,
        "patches_grid": [[1, 1]] * count,
    }


def granite_docling_media(made: Generator, count: int) -> Inputs:
    pixels, there = rows(made, count, 3, 32)
    return {"pixel_values": pixels, "pixel_attention_mask": there}


def phi4_multimodal(config: Phi4MultimodalConfig) -> PreTrainedModel:
    return Phi4MultimodalForCausalLM._from_config(config, attn_implementation="sdpa").float()


TINY: dict[str, Tiny] = {
    **{
        name: Tiny(
            config=lambda config=config: config(
                text_config=TEXT | dict(model_type="qwen2"), vision_config=SAM, image_token_index=IMAGE
            ),
            media=lambda made, count: {"pixel_values": noise(made, count, 3, 48, 48)},
            ids=[START, *[IMAGE] * 9, END],
            make=mixed,
        )
        for name, config in (("got_ocr2", GotOcr2Config), ("pp_chart2table", PPChart2TableConfig))
    },
    "ovis2": Tiny(
        config=lambda: Ovis2Config(
            text_config=TEXT | dict(model_type="qwen2"),
            vision_config=TILES | dict(hidden_stride=2, vocab_size=48),
            image_token_id=IMAGE,
            visual_indicator_token_ids=[START, MARK, TILE, LINE, END],
            vocab_size=100,
            hidden_size=64,
        ),
        media=lambda made, count: {"pixel_values": noise(made, 3 * count, 3, 16, 16)},
        ids=[START, *[IMAGE] * 4, MARK, *[IMAGE] * 4, TILE, *[IMAGE] * 4, END],
    ),
    "deepseek_vl": Tiny(
        config=lambda: DeepseekVLConfig(
            text_config=TEXT | dict(model_type="llama"), vision_config=SIGLIP, image_token_id=IMAGE
        ),
        media=lambda made, count: {"pixel_values": noise(made, count, 3, 24, 24)},
        ids=[IMAGE] * 9,
    ),
    "deepseek_vl_hybrid": Tiny(
        config=lambda: DeepseekVLHybridConfig(
            text_config=TEXT | dict(model_type="llama"),
            vision_config=SIGLIP,
            high_res_vision_config=SAM | dict(model_type="sam_vision_model"),
            image_token_id=IMAGE,
        ),
        media=lambda made, count: {
            "pixel_values": noise(made, count, 3, 24, 24),
            "high_res_pixel_values": noise(made, count, 3, 48, 48),
        },
        ids=[IMAGE] * 9,
    ),
    "janus": Tiny(
        config=lambda: JanusConfig(
            text_config=TEXT | dict(model_type="llama"),
            vision_config=TOWER | dict(mlp_ratio=2.0, projection_dim=64, num_image_tokens=9),
            vq_config=dict(
                embed_dim=8,
                num_embeddings=16,
                latent_channels=8,
                base_channels=32,
                channel_multiplier=[1, 1],
                num_res_blocks=1,
                projection_dim=64,
                image_token_embed_dim=64,
            ),
            image_token_id=IMAGE,
        ),
        media=lambda made, count: {"pixel_values": noise(made, count, 3, 24, 24)},
        ids=[START, *[IMAGE] * 9, END],
    ),
    "qianfan_ocr": Tiny(
        config=lambda: QianfanOCRConfig(
            text_config=TEXT | dict(model_type="qwen3", head_dim=16),
            vision_config=TILES,
            image_token_id=IMAGE,
            image_seq_length=4,
        ),
        media=lambda made, count: {"pixel_values": noise(made, 3 * count, 3, 16, 16)},
        ids=[START, *[IMAGE] * 12, END],
    ),
    "aria": Tiny(
        config=lambda: AriaConfig(
            text_config=TEXT | dict(moe_num_experts=4, moe_topk=2, moe_num_shared_experts=2),
            vision_config=TOWER | dict(model_type="idefics3_vision", patch_size=4),
            projector_patch_to_query_dict={36: 9},
            image_token_index=IMAGE,
        ),
        media=lambda made, count: {
            "pixel_values": noise(made, count, 3, 24, 24),
            "pixel_mask": torch.ones(count, 24, 24).bool(),
        },
        ids=[START, *[IMAGE] * 9, END],
    ),
    "emu3": Tiny(
        config=lambda: Emu3Config(
            text_config=TEXT,
            vq_config=dict(
                codebook_size=len(CODES),
                base_channels=32,
                channel_multiplier=[1, 2],
                num_res_blocks=1,
                attn_resolutions=[1],
                hidden_size=64,
            ),
            vocabulary_map={f"<|visual token {code:06d}|>": token for code, token in enumerate(CODES)}
            | {"<image>": IMAGE, "<|extra_200|>": LINE},
        ),
        media=lambda made, count: {
            "pixel_values": noise(made, count, 3, 6, 6),
            "image_sizes": torch.tensor([[6, 6]] * count),
        },
        # 3 x 3 codes and the end of each row, which is a visual token here
        ids=[START, DIGIT, TIMES, DIGIT, MARK, *[IMAGE] * 12, LAST, END],
    ),
    "idefics2": Tiny(
        config=lambda: Idefics2Config(
            text_config=TEXT | dict(model_type="mistral", sliding_window=8),
            vision_config=TOWER | dict(patch_size=4),
            perceiver_config=dict(
                hidden_size=64,
                resampler_n_latents=9,
                resampler_depth=2,
                resampler_n_heads=2,
                resampler_head_dim=16,
                num_key_value_heads=1,
            ),
            image_token_id=IMAGE,
        ),
        media=idefics2_media,
        ids=[MARK, *[IMAGE] * 9, MARK],
        make=idefics2,
    ),
    "fuyu": Tiny(
        config=lambda: FuyuConfig(
            text_config={key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
            | dict(model_type="persimmon"),
            image_size=12,
            patch_size=4,
            image_token_id=IMAGE,
        ),
        media=lambda made, count: {"pixel_values": noise(made, 9 * count, 48)},
        ids=[*([IMAGE] * 3 + [LINE]) * 3, BOS],
        one_row=True,
        note="a prompt of one picture: its getter does not tell several apart, so they are refused",
    ),
    "chameleon": Tiny(
        config=lambda: ChameleonConfig(
            **TEXT,
            vq_config=dict(
                embed_dim=8,
                num_embeddings=len(CODES),
                latent_channels=8,
                resolution=6,
                base_channels=32,
                channel_multiplier=[1, 1],
                num_res_blocks=1,
            ),
            vocabulary_map={
                f"IMGIMG{''.join(chr(ord('A') + int(digit)) for digit in str(code))}Z": token
                for code, token in enumerate(CODES)
            }
            | {"<image>": IMAGE},
        ),
        media=lambda made, count: {"pixel_values": noise(made, count, 3, 6, 6)},
        ids=[START, *[IMAGE] * 9, END],
    ),
    "deepseek_ocr2": Tiny(
        config=lambda: DeepseekOcr2Config(
            text_config=TEXT | MOE,
            vision_config=dict(
                sam_config=SAM | dict(downsample_channels=[16, 32]),
                encoder_config=dict(
                    vocab_size=100,
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                ),
            ),
            image_token_id=IMAGE,
        ),
        media=lambda made, count: {
            "pixel_values": noise(made, count, 3, 48, 48),
            "pixel_values_local": noise(made, 2 * count, 3, 48, 48),
            "num_local_patches": torch.tensor([2] * count),
        },
        ids=[IMAGE] * 13,  # two tiles of 4, the whole, and one that parts them
        make=deepseek_ocr2,
    ),
    "granite_docling": Tiny(
        config=lambda: GraniteDoclingConfig(
            text_config=TEXT | GRANITE,
            vision_config=TILES
            | dict(image_size=32, scale_factor=4, out_hidden_size=64, deepstack_visual_indexes=[0, 1]),
            image_token_id=IMAGE,
            pad_token_id=PAD,
        ),
        media=granite_docling_media,
        ids=[
            *(MARK, TILE, *[IMAGE] * 4, MARK, TILE + 1, *[IMAGE] * 4, NEWLINE),
            *(NEWLINE, MARK, LINE, *[IMAGE] * 4, MARK),
        ],  # two tiles and the whole, each behind a name of its own
    ),
    "granite4_vision": Tiny(
        config=lambda: Granite4VisionConfig(
            text_config=TEXT | GRANITE,
            # The Q-Former has a head for every 64 of this width.
            vision_config=TILES | dict(model_type="siglip_vision_model", vision_use_head=False, hidden_size=64),
            qformer_config=dict(
                model_type="blip_2_qformer",
                num_hidden_layers=1,
                intermediate_size=64,
                cross_attention_frequency=1,
                use_qformer_text_input=False,
            ),
            image_token_index=IMAGE,
            image_grid_pinpoints=[[16, 32], [32, 16]],
            vision_feature_select_strategy="full",
            downsample_rate="1/2",
            # One place of the deep stack in each of the four layers, as real checkpoints have one in every third.
            deepstack_layer_map=[[-1, 0]],
            spatial_target_layers=[1, 2, 3],
        ),
        media=lambda made, count: {
            "pixel_values": noise(made, count, 3, 3, 16, 16),
            "image_sizes": torch.tensor([[16, 32]] * count),
        },
        ids=[IMAGE] * 14,  # the whole, 2 x 2, and 2 x 4 with the ends of rows
    ),
    "llama4": Tiny(
        config=lambda: Llama4Config(
            text_config=TEXT
            | dict(
                head_dim=16,
                intermediate_size_mlp=96,
                num_local_experts=4,
                num_experts_per_tok=2,
                attention_chunk_size=8,
            ),
            vision_config=TILES
            | dict(intermediate_size=128, vision_output_dim=64, projector_input_dim=64, projector_output_dim=64),
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
        ),
        media=lambda made, count: {"pixel_values": noise(made, 3 * count, 3, 16, 16)},
        ids=[START, *[IMAGE] * 4, TILE, *[IMAGE] * 4, LINE, MARK, *[IMAGE] * 4, END],
    ),
    "unlimited_ocr": Tiny(
        config=lambda: UnlimitedOcrConfig(
            text_config=TEXT | MOE | dict(sliding_window=8),
            vision_config=dict(sam_config=SAM | dict(downsample_channels=[16, 32]), encoder_config=TOWER),
            image_token_id=IMAGE,
        ),
        media=unlimited_ocr_media,
        ids=[IMAGE] * 13,  # 3 x 3, the ends of rows, and one that parts views
    ),
    "phi4_multimodal": Tiny(
        config=lambda: Phi4MultimodalConfig(
            **TEXT,
            rope_parameters=dict(
                rope_type="longrope",
                rope_theta=10000.0,
                partial_rotary_factor=0.75,
                short_factor=[1.0] * 6,
                long_factor=[1.0, 1.2, 1.5, 2.0, 4.0, 8.0],
            ),
            sliding_window=262144,  # as released: longer than any prompt
            tie_word_embeddings=True,
            vision_config=TILES | dict(crop_size=16, image_token_id=IMAGE),
            audio_config=dict(
                hidden_size=32,
                intermediate_size=32,
                num_blocks=2,
                num_attention_heads=2,
                ext_pw_out_channel=32,
                depthwise_separable_out_channel=32,
                nemo_conv_channels=8,
                audio_token_id=LAST,
            ),
        ),
        media=lambda made, count: {
            "image_pixel_values": noise(made, count, 2, 3, 16, 16),
            "image_sizes": torch.tensor([[16, 16]] * count),
            "image_attention_mask": torch.ones(count, 2, 4, 4),
        },
        ids=[IMAGE] * 13,  # one crop and the whole, 2 x 2 with the ends of rows, and one between them
        make=phi4_multimodal,
    ),
    "apertus1p5": Tiny(
        config=lambda: Apertus1p5Config(
            text_config=TEXT | dict(vocab_size=120, output_vocab_size=100),
            vision_config=dict(
                codebook_size=16,
                embed_dim=8,
                latent_channels=8,
                base_channels=32,
                channel_multiplier=[1, 1],
                num_res_blocks=1,
                attn_resolutions=[3],
                resolution=6,
            ),
            audio_config=dict(
                model_type="wavtokenizer_encoder",
                num_filters=4,
                upsampling_ratios=[2, 2],
                num_lstm_layers=1,
                hidden_size=16,
                codebook_dim=16,
                codebook_size=4,
            ),
            image_token_id=IMAGE,
            audio_token_id=LAST,
            image_token_offset=100,
            audio_token_offset=116,
        ),
        media=lambda made, count: {
            "pixel_values": noise(made, count, 3, 6, 6),
            "image_sizes": torch.tensor([[6, 6]] * count),
        },
        ids=[START, DIGIT, TIMES, DIGIT, MARK, *([IMAGE] * 3 + [LINE]) * 2, *[IMAGE] * 3, END],
        make=mixed,
    ),
}
