"""LLaVA-NeXT: a base image, and the tiles of the picture at a higher resolution as one grid with a newline per row."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from tokenprune.families.base import Encoded, Part
from tokenprune.families.llava import Llava
from tokenprune.families.square import patch_maps


class LlavaNext(Llava):
    """`LlavaNextForConditionalGeneration`.

    The model's own packing lays out the tiles: it is run on a stand-in with one channel, so that unpadding and rounding
    are the model's.
    """

    name: ClassVar[str] = "LLaVA-NeXT"
    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    conditions: ClassVar[dict[str, str]] = {}

    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        side = self.side(model)
        tiles = self.tiles(model, encoded)
        blank = torch.zeros(sum(tiles), side * side)
        return [self._parts(side, packed) for packed in self._packed(model, encoded, blank, newline=1.0)]

    def _parts(self, side: int, packed: Tensor) -> list[Part]:
        newlines = int(packed.sum())
        if len(packed) == side * side + 1:
            return [Part((1, side, side), end=True)]
        rest = len(packed) - side * side
        tiles = Part((1, newlines, rest // newlines - 1), "tile", row_end=True)
        return [Part((1, side, side), "base"), tiles]

    def saliency(self, model: PreTrainedModel, encoded: Encoded, variant: str) -> list[list[Tensor]]:
        maps = patch_maps(encoded.calls[variant]).flatten(1)
        parts = self.items(model, encoded)
        found = []
        for own, packed in zip(parts, self._packed(model, encoded, maps, newline=-1.0), strict=True):
            values = packed[packed >= 0].split([t * h * w for t, h, w in (part.grid for part in own)])
            found.append(list(values))
        return found

    def tiles(self, model: PreTrainedModel, encoded: Encoded) -> list[int]:
        """Encoder inputs of each image, the base image counted."""
        config = model.config
        sizes, edge = encoded.arguments["image_sizes"], config.vision_config.image_size
        return [image_size_to_num_patches(s, config.image_grid_pinpoints, edge) for s in sizes]

    def pack(self, model: PreTrainedModel, encoded: Encoded, maps: list[Tensor], newline: Tensor) -> list[Tensor]:
        """Run the model's packing on `maps` [tiles, patches, 1] of each image; [tokens, 1] of each."""
        strategy = model.config.vision_feature_select_strategy
        sizes = encoded.arguments["image_sizes"]
        return self.base(model).pack_image_features(maps, sizes, strategy, image_newline=newline)[0]

    def _packed(self, model: PreTrainedModel, encoded: Encoded, maps: Tensor, newline: float) -> list[Tensor]:
        split = list(maps[..., None].split(self.tiles(model, encoded)))
        packed = self.pack(model, encoded, split, maps.new_full((1,), newline))
        return [image.flatten() for image in packed]
