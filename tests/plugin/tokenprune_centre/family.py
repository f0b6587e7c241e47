"""A family of another package stands before ours of the same model type."""

from __future__ import annotations

from typing import ClassVar

from tokenprune.families.llava import Llava


class FramedLlava(Llava):
    """LLaVA under another name."""

    name: ClassVar[str] = "Framed LLaVA"
    model_types: ClassVar[tuple[str, ...]] = ("llava",)
