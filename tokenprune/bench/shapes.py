"""Models by their sizes alone, of random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
)

VISUAL, VOCABULARY = 31, 64  # token id of a visual token, and ids there are: heads and embeddings stay small
QUARTER = 4  # of layers and blocks one in four is there, the same on both sides


@dataclass(frozen=True)
class Shape:
    """A model by its sizes alone. config: its configuration for pictures of so many pixels along a side; frames: for
    each number of visual tokens there is, the pictures that they come from (several are one video); size: pixels along
    a side of a picture of so many tokens; video: whether the model takes videos as such; patched: whether it takes
    pictures of any size, as patches."""

    config: Callable[[int], Any]
    model: type[PreTrainedModel]
    frames: dict[int, int]
    size: Callable[[int], int]
    video: bool = False
    patched: bool = False


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


IDS: dict[str, Any] = dict(image_token_id=VISUAL, video_token_id=VISUAL - 1, vision_start_token_id=VISUAL - 2)


def _qwen25(size: int, part: int = 1) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL-3B; part: of how many layers and blocks one is there. Of its 32 blocks four attend to everything, of
    a quarter of them two."""
    depth = 32 // part
    vision: dict[str, Any] = dict(
        depth=depth,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        fullatt_block_indexes=list(range(7, depth, 8)) if part == 1 else [3, 7],
        out_hidden_size=2048,
    )
    text: dict[str, Any] = dict(
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36 // part,
        num_attention_heads=16,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    )
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text, **IDS)


def _qwen3(size: int, part: int = 1) -> Qwen3VLConfig:
    """Qwen3-VL-2B; part: of how many layers and blocks one is there. States of three blocks are added in the LLM, of a
    quarter of the blocks those of one."""
    vision: dict[str, Any] = dict(
        depth=24 // part,
        hidden_size=1024,
        intermediate_size=4096,
        num_heads=16,
        deepstack_visual_indexes=[5, 11, 17] if part == 1 else [2],
        out_hidden_size=2048,
    )
    text: dict[str, Any] = dict(
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28 // part,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    )
    return Qwen3VLConfig(vision_config=vision, text_config=text, **IDS)


def _shape_of_patches(config: Callable[[int], Any], model: type[PreTrainedModel], side: int) -> Shape:
    """A model of patches, with pictures of one and four megapixels. side: pixels along a side of a token."""
    along = 1024 // side
    return Shape(config, model, {(n * along) ** 2: 1 for n in (1, 2)}, lambda n: side * round(n**0.5), patched=True)


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
    "qwen2.5-vl-3b": _shape_of_patches(partial(_qwen25, part=QUARTER), Qwen2_5_VLForConditionalGeneration, 28),
    "qwen3-vl-2b": _shape_of_patches(partial(_qwen3, part=QUARTER), Qwen3VLForConditionalGeneration, 32),
    "qwen2.5-vl-3b-whole": _shape_of_patches(_qwen25, Qwen2_5_VLForConditionalGeneration, 28),
    "qwen3-vl-2b-whole": _shape_of_patches(_qwen3, Qwen3VLForConditionalGeneration, 32),
}
