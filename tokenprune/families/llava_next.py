"""LLaVA-NeXT: a base image, and the tiles of the picture at a higher resolution as one grid with a newline per row."""

from __future__ import annotations

from dataclasses import replace
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
        packed = self._unpad(model, encoded, blank[..., None], newline=1.0)
        return [self._parts(side, image.flatten()) for image in packed]

    def _parts(self, side: int, packed: Tensor) -> list[Part]:
        newlines, rest = int(packed.sum()), len(packed) - side * side
        if rest == newlines:  # not in tiles, or so thin that its tiles have no token: only newlines, or nothing at all
            return [Part((1, side, side), end=newlines)]
        tiles = Part((1, newlines, rest // newlines - 1), "tile", row_end=True)
        return [Part((1, side, side), "base"), tiles]

    def pool_patches(self, model: PreTrainedModel, encoded: Encoded, calls: list[Tensor]) -> list[list[Tensor]]:
        maps = patch_maps(calls).flatten(2).mT
        parts = self.items(model, encoded)
        found = []
        for own, packed in zip(parts, self._unpad(model, encoded, maps, newline=float("nan")), strict=True):
            values = packed[~packed[:, 0].isnan()].split([t * h * w for t, h, w in (part.grid for part in own)])
            found.append(list(values))
        return found

    def patches(self, model: PreTrainedModel, encoded: Encoded) -> Tensor:
        """Without the empty tiles that fill up a batch of pictures."""
        pixels = encoded.pixels
        if encoded.media == "image" and pixels.ndim == 5:
            real = [image[:tiles] for image, tiles in zip(pixels, self.tiles(model, encoded), strict=True)]
            pixels = torch.cat(real)
        return super().patches(model, replace(encoded, arguments={"pixel_values": pixels}))

    def tiles(self, model: PreTrainedModel, encoded: Encoded) -> list[int]:
        """Encoder inputs of each image, the base image counted."""
        config = model.config
        sizes, edge = encoded.arguments["image_sizes"], config.vision_config.image_size
        return [image_size_to_num_patches(s, config.image_grid_pinpoints, edge) for s in sizes]

    def pack(self, model: PreTrainedModel, encoded: Encoded, maps: list[Tensor], newline: Tensor) -> list[Tensor]:
        """Run the model's packing on `maps` [tiles, patches, c] of each image; [tokens, c] of each."""
        strategy = model.config.vision_feature_select_strategy
        sizes = encoded.arguments["image_sizes"]
        return self.base(model).pack_image_features(maps, sizes, strategy, image_newline=newline)[0]

    def _unpad(self, model: PreTrainedModel, encoded: Encoded, maps: Tensor, newline: float) -> list[Tensor]:
        split = list(maps.split(self.tiles(model, encoded)))
        return self.pack(model, encoded, split, maps.new_full((maps.shape[-1],), newline))
