"""Tiny models on disk with the real processors of their families, none of which needs torchvision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma3Processor,
    Idefics3Processor,
    LlavaNextProcessor,
    LlavaProcessor,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.tiny import FAMILIES
from tests.tiny.llavas import PINPOINTS

WORDS = ["what", "is", "in", "the", "picture", "?", "user", "assistant", ":"]
SQUARE = {"height": 24, "width": 24}


def tokenizer(image: str, *special: str, **named: str) -> PreTrainedTokenizerFast:
    """Word-level, with an image token and other special ones."""
    words = ["<pad>", "<s>", "</s>", "<unk>", image, *special, *named.values(), *WORDS]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    named = named | {f"extra_{i}": word for i, word in enumerate((image, *special))}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names, extra_special_tokens=named, padding_side="left")


def template(image: str) -> str:
    return (
        "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
        "{% endfor %} {% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
    )


def llava() -> Any:
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=SQUARE)
    options = dict(patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    return LlavaProcessor(pictures, tokenizer("<image>"), chat_template=template("<image>"), **options)


def llava_next() -> Any:
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": 24}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS, do_pad=True
    )
    options = dict(patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    return LlavaNextProcessor(pictures, tokenizer("<image>"), chat_template=template("<image>"), **options)


def idefics3() -> Any:
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 36}, max_image_size={"longest_edge": 18})
    marks = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    words = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *marks)
    return Idefics3Processor(pictures, words, image_seq_len=9, chat_template=template("<image>"))


def gemma3() -> Any:
    pictures = Gemma3ImageProcessorPil(size=SQUARE, image_seq_length=9)
    named = dict(image_token="<image>", boi_token="<start>", eoi_token="<end>")
    return Gemma3Processor(pictures, tokenizer("<x>", **named), chat_template=template("<start>"), image_seq_length=9)


def paligemma() -> Any:
    """Without a chat template, as published."""
    pictures = SiglipImageProcessorPil(size=SQUARE)
    pictures.image_seq_length = 36
    return PaliGemmaProcessor(pictures, tokenizer("<x>", image_token="<image>"))


PROCESSORS: dict[str, Callable[[], Any]] = {
    "llava": llava,
    "vipllava": llava,
    "llava_next": llava_next,
    "idefics3": idefics3,
    "gemma3": gemma3,
    "paligemma": paligemma,
}


def save(name: str, folder: Path) -> None:
    """Write the tiny model `name` and its processor to `folder`."""
    processor = PROCESSORS[name]()
    config = FAMILIES[name].config()
    words = processor.tokenizer
    config.text_config.vocab_size = len(words)
    config.text_config.eos_token_id = words.eos_token_id
    image = getattr(words, "image_token_id", None) or processor.image_token_id
    config.image_token_id = image
    torch.manual_seed(0)
    model = FAMILIES[name].model_class(config).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
