"""Tiny models of further types that take packed patches of pictures of any size."""

from __future__ import annotations

from transformers import PaddleOCRVLConfig, PaddleOCRVLForConditionalGeneration

from tests.tiny.base import IMAGE, TEXT
from tests.tiny.qwens import IDS, MROPE, TinyQwen25VL

SIGLIP = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, patch_size=4)


class TinyPaddleOcrVL(TinyQwen25VL):
    """Patches in raster order."""

    name = "paddleocr_vl"
    model_class = PaddleOCRVLForConditionalGeneration
    placeholder = (IMAGE,)
    has_video = False
    patch = (3, 4, 4)

    def config(self):
        vision = SIGLIP | dict(image_size=24, spatial_merge_size=2)
        return PaddleOCRVLConfig(text_config=TEXT | MROPE | {"head_dim": 16}, vision_config=vision, **IDS)
