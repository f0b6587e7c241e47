"""lmms-eval, by its entry-point group: `--model tokenprune`, and `tokenprune_<id>` over lmms-eval's own models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

# Models of lmms-eval that load transformers' own classes of families that can be pruned.
WRAPPED = (
    "gemma3",
    "huggingface",
    "internvl_hf",
    "llava_hf",
    "mistral3_vl",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "video_llava",
)


def manifests() -> list[ModelManifest]:
    """What lmms-eval's registry asks for: `tokenprune`, and a `tokenprune_<id>` for each model in `WRAPPED` that this
    lmms-eval has, in the chat and simple versions that there are."""
    from lmms_eval.models import AVAILABLE_CHAT_TEMPLATE_MODELS, AVAILABLE_SIMPLE_MODELS
    from lmms_eval.models.registry_v2 import ModelManifest

    known = {"chat": AVAILABLE_CHAT_TEMPLATE_MODELS, "simple": AVAILABLE_SIMPLE_MODELS}
    found = [ModelManifest("tokenprune", chat_class_path=f"{__name__}.model.Tokenprune")]
    for name in WRAPPED:
        paths = {f"{kind}_class_path": f"{__name__}.wrapped.{kind}_{name}" for kind in known if name in known[kind]}
        if paths:
            found.append(ModelManifest(f"tokenprune_{name}", **paths))
    return found
