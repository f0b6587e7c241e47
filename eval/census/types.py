"""Which model types there are, which have no visual rows to prune, and which cannot be built here."""

from __future__ import annotations

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from eval.census.tiny import grids, known, mixed, squares, tiles
from eval.census.tiny.base import Tiny

MORE = (
    "qwen2_5_omni_thinker",
    "qwen3_omni_moe_thinker",
    "phi4_multimodal",
)  # not in that mapping, or not in all versions
CROSS = "Its text attends to visual states across; there are no visual rows in the sequence."
FEW = "A Q-Former makes 32 rows of a picture, so there is nothing to gain."
APPLIES_NOT: dict[str, str] = {
    **dict.fromkeys(("mllama", "idefics", "evolla"), CROSS),
    **dict.fromkeys(
        (
            *("blip", "florence2", "pix2struct", "t5gemma2", "udop", "pp_formulanet", "vision-encoder-decoder"),
            *("kosmos-2", "kosmos-2.5", "git"),
        ),
        "Its visual states go to an encoder-decoder, across, or in front of the text without a place in the prompt.",
    ),
    **dict.fromkeys(("blip-2", "instructblip", "instructblipvideo"), FEW),
    "mistral4": "It takes text alone.",
    "pi0": "Its decoder is a prefix for a model of actions, which reads the cache of all of it.",
}
NOT_BUILT: dict[str, str] = {
    "gemma3n": "Its vision encoder needs timm, which is not installed here.",
    **dict.fromkeys(("inkling2", "inkling2_loop"), "Like inkling_mm_model it has no rotary embedding to go by."),
}
TINY: dict[str, Tiny] = squares.TINY | tiles.TINY | grids.TINY | mixed.TINY | known.TINY


def types() -> list[str]:
    """All model types that take pictures and text."""
    return sorted({*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *MORE})
