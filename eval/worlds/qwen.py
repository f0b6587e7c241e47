"""What the bundled models of Qwen's architectures share: special tokens, chat format, settings of their processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from eval.worlds.words import write_template

SPECIAL = (
    *("<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
NAMED = {
    "user_token": "<user>",
    "assistant_token": "<assistant>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}
CHAT_TEMPLATE = write_template(
    "{% if part['type'] in ('image', 'video') %}{{ '<|vision_start|><|' + part['type'] + '_pad|><|vision_end|>' }}"
)


def config_ids() -> dict[str, int]:
    """The ids of special tokens, as configs name them."""
    ids = {f"{name}_token_id": SPECIAL.index(f"<|{name}_pad|>") for name in ("image", "video")}
    return ids | {f"vision_{name}_token_id": SPECIAL.index(f"<|vision_{name}|>") for name in ("start", "end")}


def save_all(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pictures: dict[str, Any], name: str, folder: Path
) -> None:
    """Model in its precision, tokenizer, and the settings that `AutoProcessor` reads where torchvision is there.

    pictures: settings of the image processor. name: as `Qwen3VL`, of its processors.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    own = {key: value for key, value in pictures.items() if key not in ("image_processor_type", "processor_class")}
    frames = "Qwen2VL" if name == "Qwen2_5_VL" else name
    settings = {
        "processor_class": f"{name}Processor",
        "image_processor": own | {"image_processor_type": "Qwen2VLImageProcessor"},
        "video_processor": own | {"video_processor_type": f"{frames}VideoProcessor", "do_sample_frames": False},
    }
    (folder / "processor_config.json").write_text(json.dumps(settings, indent=2, default=str) + "\n")
