"""Processors for conversations with tiny models: words are `w7` for token 7, a frame is an image of h x w pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedModel

from tests.tiny import FAMILIES, IMAGE, Picture
from tests.tiny.base import BOS, END, START, Tiny

MARKED = ("qwen", "glm", "paddleocr")  # their chat templates, not their processors, write the marks around an image
WORDS = {"<s>": BOS, "[": START, "]": END, "u": 5, "a": 6, ".": 7}
USER, ASSISTANT, STOP = (WORDS[word] for word in ("u", "a", "."))


class Tokenizer:
    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [WORDS[word] if word in WORDS else int(word[1:]) for word in text.split()]}


@dataclass
class TalkProcessor:
    """Says `<s> u` once, then images and words, `a` before an answer and `. u` after it."""

    tiny: Tiny
    image_token = "<image>"
    chat_template = "what apply_chat_template does"
    tokenizer = Tokenizer()

    @property
    def marked(self) -> bool:
        return self.tiny.name.startswith(MARKED)

    def ids(self, picture: Picture) -> list[int]:
        own = self.tiny.ids(picture)
        return own[1:-1] if self.marked else own

    def media(self, picture: Picture, seed: int) -> dict[str, torch.Tensor]:
        return self.tiny.media([[picture]], torch.Generator().manual_seed(seed))

    def apply_chat_template(self, turns: list[dict], add_generation_prompt: bool, tokenize: bool) -> str:
        image = "[ <image> ] " if self.marked else "<image> "
        text = "<s> "
        for turn in turns:
            words = "".join(image if part["type"] == "image" else f"{part['text']} " for part in turn["content"])
            text += f"u {words}" if turn["role"] == "user" else f"a {words}. "
        return text + "a "

    def __call__(self, images: Image.Image, text: str, return_tensors: str, add_special_tokens: bool) -> BatchFeature:
        before, after = text.split(self.image_token)
        picture = Picture(images.height, images.width)
        ids = [*self.tokenizer(before)["input_ids"], *self.ids(picture), *self.tokenizer(after)["input_ids"]]
        batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        return BatchFeature(batch | self.media(picture, images.getpixel((0, 0))) | self.tiny.extra(batch))

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(f"w{token}" for token in ids)


def talking(family: str, layer: int | None = None, layers: int | None = None) -> tuple[PreTrainedModel, TalkProcessor]:
    """A tiny model that says words alone, and its processor. layer: the only one whose attention has a say, so that
    what its rows are does not depend on what was read before them. layers: how many there are."""
    tiny = FAMILIES[family]
    config = tiny.config()
    config.get_text_config().num_hidden_layers = layers or 6
    torch.manual_seed(0)
    model = tiny.make(config)
    with torch.no_grad():
        for i, one in enumerate(tiny.text_model(model).layers):
            if layer is not None and i != layer % config.get_text_config().num_hidden_layers:
                one.self_attn.o_proj.weight.zero_()
        model.get_output_embeddings().weight[IMAGE - 10 :] = 0
    return model, TalkProcessor(tiny)


def frame(number: int, h: int = 3, w: int = 4) -> Image.Image:
    """A frame that differs from those of other numbers."""
    return Image.new("I", (w, h), number)
