"""The architecture, tokenizer and processor of the bundled model, all from standard transformers classes."""

from __future__ import annotations

from tokenizers import normalizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from eval.worlds.scenes.draw import GRID, PATCH, SIZE
from eval.worlds.scenes.questions import vocabulary
from eval.worlds.words import build_tokenizer, write_template

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<user>", "<assistant>")
CHAT_TEMPLATE = write_template("{% if part['type'] == 'image' %}{{ '<image>' }}")
WIDTH = 128  # of the vision tower


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the closed vocabulary; "color" is read as "colour"."""
    return build_tokenizer(
        (*SPECIAL, *vocabulary()),
        normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("color", "colour")]),
        additional_special_tokens=["<image>", "<user>", "<assistant>"],
        model_max_length=1024,
    )


def make_processor() -> LlavaProcessor:
    """LLaVA processor for 96 x 96 pictures, patch 8, with the chat template."""
    image_processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=make_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def make_config(vocab_size: int) -> LlavaConfig:
    """CLIP tower of 5 layers (features from the fourth, as LLaVA-1.5 takes the last but one), Llama of 8 layers."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=160,
        intermediate_size=480,
        num_hidden_layers=8,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=1024,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=GRID * GRID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def make_model(vocab_size: int) -> LlavaForConditionalGeneration:
    """Untrained model with the attention that trains fastest on a CPU."""
    return LlavaForConditionalGeneration._from_config(make_config(vocab_size), attn_implementation="eager")
