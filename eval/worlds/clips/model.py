"""Architecture, tokenizer and image processor of the bundled video model, from standard transformers classes."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers.normalizers import Lowercase
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from eval.worlds.clips.draw import CELL, SIZE
from eval.worlds.clips.questions import vocabulary
from eval.worlds.qwen import CHAT_TEMPLATE, NAMED, SPECIAL, config_ids, save_all
from eval.worlds.words import build_tokenizer

MERGE = 2
PATCH = CELL // MERGE
WIDTH = 128  # of what the vision encoder gives


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the closed vocabulary."""
    return build_tokenizer(
        (*SPECIAL, *vocabulary()),
        Lowercase(),
        extra_special_tokens=NAMED,
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )


def make_image_processor() -> Qwen2VLImageProcessorPil:
    """Patches of 8 x 8 pixels; every frame is brought to the size of the training clips, whatever its own."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        size={"shortest_edge": SIZE * SIZE, "longest_edge": SIZE * SIZE},
    )


def save(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Model in half precision, tokenizer, and the settings that `AutoProcessor` reads where torchvision is there."""
    save_all(model.to(torch.float16), make_tokenizer(), make_image_processor().to_dict(), "Qwen2_5_VL", folder)


def make_config(vocab_size: int) -> Qwen2_5_VLConfig:
    """A vision encoder of 4 full-attention layers, a Qwen2 of 8 layers with M-RoPE and grouped keys."""
    vision = dict(
        depth=4,
        hidden_size=128,
        intermediate_size=384,
        num_heads=4,
        patch_size=PATCH,
        spatial_merge_size=MERGE,
        temporal_patch_size=2,
        window_size=SIZE,
        fullatt_block_indexes=[0, 1, 2, 3],
        out_hidden_size=WIDTH,
        tokens_per_second=4,
    )
    text = dict(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
        tie_word_embeddings=False,
    )
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=False, **config_ids())


def make_model(vocab_size: int) -> Qwen2_5_VLForConditionalGeneration:
    """Untrained model."""
    return Qwen2_5_VLForConditionalGeneration._from_config(make_config(vocab_size), attn_implementation="eager")
