"""Architecture, tokenizer and processor of the bundled model that reads, from standard transformers classes."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from tokenizers.normalizers import Lowercase
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from eval.worlds.pages.questions import BINS
from eval.worlds.pages.sheet import EMPTY, TICKED, TOKEN
from eval.worlds.pages.text import CHARACTERS, SPOKEN
from eval.worlds.qwen import CHAT_TEMPLATE, NAMED, SPECIAL, config_ids, save_all

MERGE = 2
PATCH = TOKEN // MERGE
WIDTH = 192  # of the language model
PLACES = (*(f"x{i}" for i in range(BINS)), *(f"y{i}" for i in range(BINS)))
MARKS = (EMPTY, TICKED)
PIXELS = (196 * TOKEN**2, 900 * TOKEN**2)  # of a picture, at least and at most


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for a word that questions are made of and for a place on the page, one for any other character.

    All text is read in lower case.
    """
    words = dict.fromkeys((*SPECIAL, *CHARACTERS, " ", '"', "?", *MARKS, *PLACES, *SPOKEN))
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    core.normalizer = Lowercase()
    core.decoder = decoders.Fuse()
    core.add_tokens([AddedToken(w, lstrip=True, rstrip=True, single_word=True, normalized=True) for w in SPOKEN])
    core.add_tokens([AddedToken(w, normalized=True) for w in reversed(PLACES)])
    core.add_tokens([AddedToken("?", lstrip=True, rstrip=True)])
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        padding_side="left",
        extra_special_tokens=NAMED,
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        **marks,
    )


def make_image_processor() -> Qwen2VLImageProcessorPil:
    """Patches of 8 x 8 pixels; a page keeps its size where that makes 196 to 900 visual tokens."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": PIXELS[0], "longest_edge": PIXELS[1]},
    )


def save(model: Qwen3VLForConditionalGeneration, folder: Path) -> None:
    """Model in half precision, tokenizer, and the settings that `AutoProcessor` reads where torchvision is there."""
    save_all(model.to(torch.float16), make_tokenizer(), make_image_processor().to_dict(), "Qwen3VL", folder)


def make_config(vocab_size: int) -> Qwen3VLConfig:
    """A vision encoder of 5 layers with two DeepStack planes, a Qwen3 of 8 layers with interleaved M-RoPE."""
    vision = dict(
        depth=5,
        hidden_size=128,
        intermediate_size=384,
        num_heads=4,
        patch_size=PATCH,
        spatial_merge_size=MERGE,
        temporal_patch_size=2,
        out_hidden_size=WIDTH,
        num_position_embeddings=256,
        deepstack_visual_indexes=[1, 3],
    )
    text = dict(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=4096,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
        tie_word_embeddings=False,
    )
    return Qwen3VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=False, **config_ids())


def make_model(vocab_size: int) -> Qwen3VLForConditionalGeneration:
    """Untrained model, whose DeepStack planes say nothing at first."""
    model = Qwen3VLForConditionalGeneration._from_config(make_config(vocab_size), attn_implementation="eager")
    for merger in model.model.visual.deepstack_merger_list:
        nn.init.zeros_(merger.linear_fc2.weight)
    return model
