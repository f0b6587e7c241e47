"""Any model whose visual features are rows of a decoder, by the conventions of the host library alone.

Where no file names a model type, its parts are found by their names, and every picture is one row of tokens in the
order of its features: how they lie in rows, columns, frames and tiles is not known, and the vision encoder is not
looked into. Nobody has tested such a model, so the first prompt of each run is compared with its reference.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from tokenprune.errors import Unsupported
from tokenprune.families.base import ENCODER_SIGNALS, Encoded, Family, Part, without

GETTERS = {"image": "get_image_features", "video": "get_video_features"}
TEXT_MODELS = ("language_model", "text_model")
MERGERS = ("get_placeholder_mask", "inputs_merger")


class Generic(Family):
    """A model type without a file of its own, or with one that says what is special about it and nothing else."""

    name: ClassVar[str] = "other models"
    model_types: ClassVar[tuple[str, ...]] = ()
    missing: ClassVar[dict[str, str]] = without(
        "no family file tells how the rows of its vision encoder become tokens.", *ENCODER_SIGNALS
    )
    by_convention: ClassVar[tuple[str, ...]] = ()  # model types of such a file
    knows_grids: ClassVar[bool] = False
    trusted: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises `Unsupported` where the model does not keep to the conventions."""
        base, name = self.base(model), model.config.model_type
        missing = _find_missing(model, base)
        if missing:
            raise Unsupported(
                f"No family file names model type {name!r}, and it does not keep to the conventions by which "
                f"others are pruned: {missing}. A family file would say where its parts are; "
                "`tokenprune list --models` has the types that are pruned."
            )
        media = [one for one in GETTERS if _token(model, one) is not None and hasattr(base, GETTERS[one])]
        vars(self).update(name=name, model_types=(name,), getters={one: GETTERS[one] for one in media})

    def base(self, model: PreTrainedModel) -> Any:
        """The innermost module that has the getter of image features."""
        inner = model.base_model
        return inner if hasattr(inner, GETTERS["image"]) else model

    def language_model(self, model: PreTrainedModel) -> Any:
        return _text_model(self.base(model))

    def placeholders(self, model: PreTrainedModel) -> dict[str, int]:
        found = {media: _token(model, media) for media in self.getters}
        return {media: token for media, token in found.items() if token is not None}

    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        """One flat row of tokens for each picture: what the getter keeps apart, else shares by the pictures' grids."""
        grids = encoded.arguments.get(f"{encoded.media}_grid_thw")
        pieces = list(encoded.pieces)
        if len(pieces) == 1 and grids is not None and len(grids) > 1:
            sizes = torch.as_tensor(grids).prod(-1)
            shares = sizes * encoded.features // int(sizes.sum())
            pieces = shares.tolist()
        return [[Part((1, 1, count), encoded.media)] for count in pieces]


def _token(model: PreTrainedModel, media: str) -> int | None:
    """The id that stands for a visual token."""
    names = (f"{media}_token_id", f"{media}_token_index")
    return next((v for name in names if (v := getattr(model.config, name, None)) is not None), None)


def _text_model(base: Any) -> Any:
    """The decoder without its head; None where it is not found."""
    for name in TEXT_MODELS:
        found = getattr(base, name, None)
        for inner in (found, getattr(found, "model", None)):
            if isinstance(getattr(inner, "layers", None), nn.ModuleList):
                return inner
    return None


def _find_missing(model: PreTrainedModel, base: Any) -> str:
    """The first convention that a model does not keep to, in words; empty where it keeps to all."""
    if not hasattr(base, GETTERS["image"]):
        return "it has no get_image_features"
    if not any(hasattr(base, name) for name in MERGERS):
        return f"it has neither {' nor '.join(MERGERS)}, so its features may not be rows of the prompt"
    if _token(model, "image") is None:
        return "its config names no image token"
    text_model = _text_model(base)
    if text_model is None:
        return f"it has no {' or '.join(TEXT_MODELS)} with layers"
    if text_model is base:
        return "its language model is the model itself, which takes pixels"
    if getattr(text_model, "rotary_emb", None) is None:
        return "its language model has no rotary embedding"
    without_keys = [i for i, layer in enumerate(text_model.layers) if not hasattr(layer, "self_attn")]
    types = getattr(text_model.config, "layer_types", None)
    if without_keys and types is None:
        return f"its decoder layers {', '.join(map(str, without_keys))} have no attention"
    return ""
