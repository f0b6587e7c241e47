"""Architecture, tokenizer and image processor of the bundled video model, from standard transformers classes."""

from __future__ import annotations

import json
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
from eval.worlds.words import build_tokenizer, write_template

MERGE = 2
PATCH = CELL // MERGE
WIDTH = 128  # of what the vision encoder gives
SPECIAL = (
    *("<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
CHAT_TEMPLATE = write_template(
    "{% if part['type'] in ('image', 'video') %}{{ '<|vision_start|><|' + part['type'] + '_pad|><|vision_end|>' }}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the closed vocabulary."""
    return build_tokenizer(
        (*SPECIAL, *vocabulary()),
        Lowercase(),
        extra_special_tokens={
            "user_token": "<user>",
            "assistant_token": "<assistant>",
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
        },
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
    model.to(torch.float16).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    pictures = make_image_processor().to_dict()
    for name in ("image_processor_type", "processor_class"):
        pictures.pop(name, None)
    settings = {
        "processor_class": "Qwen2_5_VLProcessor",
        "image_processor": pictures | {"image_processor_type": "Qwen2VLImageProcessor"},
        "video_processor": pictures | {"video_processor_type": "Qwen2VLVideoProcessor", "do_sample_frames": False},
    }
    (folder / "processor_config.json").write_text(json.dumps(settings, indent=2, default=str) + "\n")


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
    marks = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    ids = {f"{name}_token_id": SPECIAL.index(word) for name, word in marks.items()}
    for name in ("start", "end"):
        ids[f"vision_{name}_token_id"] = SPECIAL.index(f"<|vision_{name}|>")
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=False, **ids)


def make_model(vocab_size: int) -> Qwen2_5_VLForConditionalGeneration:
    """Untrained model."""
    return Qwen2_5_VLForConditionalGeneration._from_config(make_config(vocab_size), attn_implementation="eager")
