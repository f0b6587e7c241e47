"""Qwen3-VL: Qwen2-VL with DeepStack planes, and timestamps in the text between the frames of a video."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from tokenprune.families.qwen2_vl import Qwen2VL


class Qwen3VL(Qwen2VL):
    """`Qwen3VLForConditionalGeneration` and its mixture-of-experts form. A video is one span across its timestamps."""

    name: ClassVar[str] = "Qwen3-VL"
    model_types: ClassVar[tuple[str, ...]] = (
        *("qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe_thinker"),
        *("cosmos3_omni", "cohere_compass"),
    )
    pixel_std: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)

    def exits(self, visual: Any) -> tuple[nn.Module, ...]:
        return (visual.merger, *visual.deepstack_merger_list)
