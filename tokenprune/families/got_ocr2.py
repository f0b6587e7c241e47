"""GOT-OCR 2 and PP-Chart2Table: a square for each page or crop, by strided convolutions behind SAM's encoder."""

from __future__ import annotations

from typing import ClassVar

from transformers import PreTrainedModel

from tokenprune.families.base import CLIP_STD, ENCODER_SIGNALS, without
from tokenprune.families.square import Square, patches_of


class GotOcr2(Square):
    """`GotOcr2ForConditionalGeneration` and `PPChart2TableForConditionalGeneration`.

    Pages and crops of a page stand side by side and are not told apart, so each is a picture of its own.
    """

    name: ClassVar[str] = "GOT-OCR 2"
    model_types: ClassVar[tuple[str, ...]] = ("got_ocr2", "pp_chart2table")
    pixel_std: ClassVar[tuple[float, float, float]] = CLIP_STD
    missing: ClassVar[dict[str, str]] = without(
        "its vision encoder works in windows without a kernel to listen to, and convolutions mix what it makes.",
        *ENCODER_SIGNALS,
    )

    def side(self, model: PreTrainedModel) -> int:
        return -(-patches_of(model) // 4)  # two convolutions of stride 2

    def whole_encoder(self, model: PreTrainedModel | None, media: str) -> str | None:
        return "it works on a square of rows and columns, in windows and by convolutions."
