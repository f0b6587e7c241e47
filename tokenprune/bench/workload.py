"""What is measured: a model and a prompt with visual tokens, of random weights in a known shape or the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    SiglipVisionConfig,
)

from tokenprune.errors import BadInput, unknown
from tokenprune.families.registry import family_of

VISUAL, VOCABULARY = 31, 64  # token id of a visual token, and ids there are: heads and embeddings stay small
BEFORE, AFTER = 4, 32  # text tokens around the image


@dataclass(frozen=True)
class Workload:
    """A model and one batch of prompts for it. images: as for `prune`."""

    name: str
    model: PreTrainedModel
    inputs: dict[str, Any]
    images: str = "each"

    def visual(self) -> Tensor:
        """bool [B, L]: where visual tokens (and their separators) stand in the prompt."""
        ids = self.inputs["input_ids"]
        tokens = family_of(self.model).placeholders(self.model).values()
        return torch.isin(ids, torch.tensor(sorted(tokens), device=ids.device))

    @property
    def batch(self) -> int:
        """Rows of the batch."""
        return len(self.inputs["input_ids"])


@dataclass(frozen=True)
class Shape:
    """A model by its sizes alone. config: its configuration for pictures of so many pixels along a side; frames: for
    each number of visual tokens there is, the pictures that they come from (several are one video); size: pixels along
    a side of a picture of so many tokens; video: whether the model takes videos as such."""

    config: Callable[[int], Any]
    model: type[PreTrainedModel]
    frames: dict[int, int]
    size: Callable[[int], int]
    video: bool = False


def configure_llama(width: int, inner: int, layers: int, heads: int, **others: int) -> LlamaConfig:
    """A decoder by its sizes; others: fields of the configuration that differ from the usual."""
    sizes: dict[str, Any] = dict(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads
    )
    return LlamaConfig(**{"vocab_size": VOCABULARY, "max_position_embeddings": 8192} | sizes | others)


def configure_llava(text: LlamaConfig, tower: dict[str, Any]) -> Callable[[int], LlavaConfig]:
    """A function of the pixels along a side of a picture, cut into patches of 14; tower: sizes of the encoder."""

    def config(size: int) -> LlavaConfig:
        vision = CLIPVisionConfig(**tower, image_size=size, patch_size=14)
        return LlavaConfig(vision_config=vision, text_config=text, image_token_index=VISUAL)

    return config


def _onevision(size: int) -> LlavaOnevisionConfig:
    tower = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=26,
        num_attention_heads=16,
        image_size=size,
        patch_size=14,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
    return LlavaOnevisionConfig(
        vision_config=tower, text_config=text, image_token_index=VISUAL - 1, video_token_index=VISUAL
    )


def _square(tokens: int) -> int:
    return 14 * round(tokens**0.5)


SMALL = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4)
LARGE = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
STILL = {576: 1, 2304: 1, 6272: 32}
SHAPES = {
    "llama-1024": Shape(
        configure_llava(configure_llama(1024, 2752, 16, 16), SMALL), LlavaForConditionalGeneration, STILL, _square
    ),
    "llava-1.5-7b": Shape(
        configure_llava(configure_llama(4096, 11008, 32, 32), LARGE), LlavaForConditionalGeneration, STILL, _square
    ),
    # 27 x 27 patches of a frame are pooled to 14 x 14.
    "onevision-qwen2-7b": Shape(
        _onevision, LlavaOnevisionForConditionalGeneration, {6272: 32}, lambda _: 14 * 27, video=True
    ),
}


def workload(
    shape: str, tokens: int, batch: int = 1, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Workload:
    """A random model of a shape (a name in `SHAPES`), and prompts of so many visual tokens and 36 text tokens."""
    if shape not in SHAPES:
        raise unknown("shape", shape, SHAPES)
    spec = SHAPES[shape]
    if tokens not in spec.frames:
        raise BadInput(f"The shape {shape!r} has prompts of {', '.join(map(str, spec.frames))} visual tokens.")
    frames = spec.frames[tokens]
    size = spec.size(tokens // frames)
    torch.manual_seed(0)
    with torch.device(device):
        model = spec.model._from_config(spec.config(size), dtype=dtype).eval()
        ids = torch.randint(1, VISUAL - 1, (batch, BEFORE + tokens + spec.video + AFTER))
        ids[:, BEFORE : BEFORE + tokens + spec.video] = VISUAL  # a video ends with one newline
        pixels = torch.randn(batch * frames, 3, size, size, dtype=dtype)
    media: dict[str, Tensor] = {"pixel_values": pixels}
    if spec.video:
        media = {"pixel_values_videos": pixels.unflatten(0, (batch, frames))}
    images = "frames" if frames > 1 and not spec.video else "each"
    return Workload(f"{shape}, {tokens} tokens", model, {"input_ids": ids} | media, images)
