"""lmms-eval, by its entry-point group: `--model tokenprune`, and `tokenprune_<id>` over lmms-eval's own models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

# Models of lmms-eval that load transformers' own classes of families that can be pruned; True: also in a chat version.
WRAPPED = {
    "gemma3": False,
    "huggingface": True,
    "internvl_hf": True,
    "llava_hf": True,
    "mistral3_vl": False,
    "qwen2_5_vl": True,
    "qwen2_vl": False,
    "qwen3_vl": True,
    "video_llava": False,
}


def manifests() -> list[ModelManifest]:
    """What lmms-eval's registry asks for: `tokenprune` and one `tokenprune_<id>` for each model in `WRAPPED`."""
    from lmms_eval.models import AVAILABLE_SIMPLE_MODELS
    from lmms_eval.models.registry_v2 import ModelManifest

    found = [ModelManifest("tokenprune", chat_class_path=f"{__name__}.model.Tokenprune")]
    for name, chat in WRAPPED.items():
        paths = {"chat_class_path": f"{__name__}.wrapped.chat_{name}" if chat else None}
        if name in AVAILABLE_SIMPLE_MODELS:
            paths["simple_class_path"] = f"{__name__}.wrapped.simple_{name}"
        found.append(ModelManifest(f"tokenprune_{name}", **paths))
    return found
