"""EXAONE 4.5: Qwen2.5-VL's encoder with keys shared between heads; 1-D positions."""

from __future__ import annotations

from typing import ClassVar

from tokenprune.families.qwen2_5_vl import Qwen25VL


class Exaone45(Qwen25VL):
    """`Exaone4_5_ForConditionalGeneration`."""

    name: ClassVar[str] = "EXAONE 4.5"
    model_types: ClassVar[tuple[str, ...]] = ("exaone4_5",)
    missing: ClassVar[dict[str, str]] = {k: v for k, v in Qwen25VL.missing.items() if k != "rope_weight"}
