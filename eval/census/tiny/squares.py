"""Models whose pictures have a fixed number of tokens each."""

from __future__ import annotations

from typing import Any

from transformers import AyaVisionConfig, Cohere2VisionConfig

from eval.census.tiny.base import END, IMAGE, START, TEXT, Tiny, noise

SIGLIP: dict[str, Any] = dict(
    model_type="siglip_vision_model",
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=24,
    patch_size=4,
    vision_use_head=False,
)  # 6 x 6 patches


TINY: dict[str, Tiny] = {
    "cohere2_vision": Tiny(
        config=lambda: Cohere2VisionConfig(
            text_config=TEXT | dict(model_type="cohere2", sliding_window=8),
            vision_config=SIGLIP,
            image_token_id=IMAGE,
            downsample_factor=2,
        ),
        media=lambda made, count: {"pixel_values": noise(made, count, 3, 24, 24)},
        ids=[START, *[IMAGE] * 9, END],
    ),
    "aya_vision": Tiny(
        config=lambda: AyaVisionConfig(
            text_config=TEXT | dict(model_type="cohere2", sliding_window=8),
            vision_config=SIGLIP,
            image_token_index=IMAGE,
            downsample_factor=2,
        ),
        media=lambda made, count: {"pixel_values": noise(made, count, 3, 24, 24)},
        ids=[START, *[IMAGE] * 9, END],
    ),
}
