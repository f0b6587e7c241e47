"""Tiny random models of every family, and prompts for them, built from configs alone."""

from tests.tiny.base import BREAK, IMAGE, VIDEO, Picture, Tiny, Video
from tests.tiny.grids import (
    TinyErnie45VL,
    TinyExaone45,
    TinyHunYuanVL,
    TinyLightOnOcr,
    TinyPaddleOcrVL,
    TinyVideoLlama3,
)
from tests.tiny.llavas import (
    TinyLlava,
    TinyLlavaNext,
    TinyLlavaNextVideo,
    TinyLlavaOnevision,
    TinyLlavaSiglip,
    TinyPixtral,
    TinyVideoLlava,
    TinyVipLlava,
)
from tests.tiny.others import (
    TinyFastVlm,
    TinyGemma3,
    TinyIdefics3,
    TinyInternVL,
    TinyMistral3,
    TinyPaliGemma,
    TinyPaliGemma2,
    TinyPerceptionLM,
    TinySmolVLM,
)
from tests.tiny.qwens import TinyGlm4V, TinyGlm4VMoe, TinyGlm46V, TinyQwen2VL, TinyQwen3VL, TinyQwen3VLMoe, TinyQwen25VL
from tests.tiny.tiles import TinyAyaVision, TinyCohere2Vision, TinyDeepseekVL, TinyGotOcr2, TinyOvis2

FAMILIES: dict[str, Tiny] = {
    cls.name: cls()
    for cls in (
        TinyLlava,
        TinyLlavaSiglip,
        TinyVipLlava,
        TinyPixtral,
        TinyLlavaNext,
        TinyLlavaNextVideo,
        TinyLlavaOnevision,
        TinyVideoLlava,
        TinyQwen2VL,
        TinyQwen25VL,
        TinyQwen3VL,
        TinyQwen3VLMoe,
        TinyGlm4V,
        TinyGlm46V,
        TinyGlm4VMoe,
        TinyInternVL,
        TinySmolVLM,
        TinyIdefics3,
        TinyGemma3,
        TinyPaliGemma,
        TinyPaliGemma2,
        TinyMistral3,
        TinyFastVlm,
        TinyPerceptionLM,
        TinyPaddleOcrVL,
        TinyOvis2,
        TinyAyaVision,
        TinyCohere2Vision,
        TinyLightOnOcr,
        TinyExaone45,
        TinyVideoLlama3,
        TinyErnie45VL,
        TinyHunYuanVL,
        TinyDeepseekVL,
        TinyGotOcr2,
    )
}

__all__ = ["BREAK", "FAMILIES", "IMAGE", "VIDEO", "Picture", "Tiny", "Video"]
