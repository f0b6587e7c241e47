"""Mistral 3 and Pixtral: pictures of any size, a break token in the text after each row of tokens but the last."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenprune.families.base import (
    CLIP_STD,
    NO_CLASS_TOKEN,
    Encoded,
    EncoderBlocks,
    Family,
    Groups,
    Part,
    Separator,
    Span,
    feature_layer,
    grid_groups,
)
from tokenprune.families.square import flat_map


class Mistral3(Family):
    """`Mistral3ForConditionalGeneration`, and `LlavaForConditionalGeneration` with a Pixtral tower."""

    name: ClassVar[str] = "Mistral 3, Pixtral"
    model_types: ClassVar[tuple[str, ...]] = ("mistral3",)
    pixel_std: ClassVar[tuple[float, float, float]] = CLIP_STD
    missing: ClassVar[dict[str, str]] = NO_CLASS_TOKEN

    def serves(self, model: PreTrainedModel) -> bool:
        vision = getattr(model.config, "vision_config", None)
        pixtral = model.config.model_type == "llava" and getattr(vision, "model_type", None) == "pixtral"
        return super().serves(model) or pixtral

    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        merge = _merge(model)
        return [[Part((1, h // merge, w // merge))] for h, w in self._sizes(model, encoded)]

    def finish(self, model: PreTrainedModel, spans: list[Span], input_ids: Tensor) -> list[Span]:
        """The token between two rows is their break; the one after the last row ends the image and stays."""
        finished = []
        for span in spans:
            _, h, w = span.grid
            last = [span.columns[row * w - 1] for row in range(1, h)]
            breaks = [
                Separator(column + 1, row * w, (row + 1) * w)
                for row, column in enumerate(last)
                if span.columns[(row + 1) * w] == column + 2
            ]
            finished.append(replace(span, separators=tuple(breaks)))
        return finished

    def encoder(self, model: PreTrainedModel, media: str) -> tuple[nn.ModuleList, int]:
        layers = self.base(model).vision_tower.transformer.layers
        return layers, feature_layer(layers, model.config.vision_feature_layer)

    def whole_encoder(self, model: PreTrainedModel | None, media: str) -> str | None:
        return None

    def encoder_blocks(self, model: PreTrainedModel, media: str) -> EncoderBlocks:
        return EncoderBlocks(*self.encoder(model, media))

    def groups(self, model: PreTrainedModel, encoded: Encoded, rows: tuple[int, int]) -> Groups:
        """All images stand in one sequence, patches in raster order."""
        merge, members, first = _merge(model), [], 0
        sizes = self._sizes(model, encoded)
        for h, w in sizes:
            members.append(grid_groups(h, w, merge) + first)
            first += h * w
        return Groups(torch.cat(members), [(h // merge, w // merge) for h, w in sizes], [1] * len(sizes))

    def group_pixels(self, model: PreTrainedModel, encoded: Encoded, groups: Groups) -> Tensor:
        patches = self.patches(model, encoded)[0].flatten(1)
        return patches[groups.members.to(patches.device)].flatten(1)

    def pool_patches(self, model: PreTrainedModel, encoded: Encoded, calls: list[Tensor]) -> list[list[Tensor]]:
        """All images stand in one sequence, each seeing itself alone."""
        sizes = self._sizes(model, encoded)
        flat = torch.cat([call.flatten(0, 1) for call in calls])
        found = []
        for (h, w), values in zip(sizes, flat.split([h * w for h, w in sizes]), strict=True):
            pooled = nn.functional.avg_pool2d(values.mT.unflatten(1, (h, w)), _merge(model))
            found.append([flat_map(pooled)])
        return found

    def patches(self, model: PreTrainedModel, encoded: Encoded) -> Tensor:
        """Without what pads the smaller pictures of a batch."""
        size = model.config.vision_config.patch_size
        found = []
        for image, (h, w) in zip(encoded.pixels.float(), self._sizes(model, encoded), strict=True):
            image = image[None, :, : h * size, : w * size]
            found.append(nn.functional.unfold(image, size, stride=size)[0].mT.unflatten(1, (3, -1)))
        return torch.cat(found)[None]

    def _sizes(self, model: PreTrainedModel, encoded: Encoded) -> list[tuple[int, int]]:
        """Encoder patches (rows, columns) of each image."""
        sizes = encoded.arguments.get("image_sizes")
        pixels = encoded.pixels
        sizes = [pixels.shape[-2:]] * len(pixels) if sizes is None else torch.as_tensor(sizes).tolist()
        patch = model.config.vision_config.patch_size
        return [(int(h) // patch, int(w) // patch) for h, w in sizes]


def _merge(model: PreTrainedModel) -> int:
    """Patches along one side of a token."""
    return getattr(model.config, "spatial_merge_size", 1)
