"""Base of the families whose pictures of any size stand in one sequence of the encoder, patches in raster order."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenprune.families.base import Encoded, EncoderBlocks, Family, Groups, Part, grid_groups
from tokenprune.families.square import flat_map


class Raster(Family):
    """Each picture sees itself alone; `merge` x `merge` of its patches become one token."""

    def merge(self, model: PreTrainedModel) -> int:
        """Patches along one side of a token."""
        return model.config.vision_config.spatial_merge_size

    def sizes(self, model: PreTrainedModel, encoded: Encoded) -> list[tuple[int, int]]:
        """Encoder patches (rows, columns) of each image."""
        return [(h, w) for _, h, w in encoded.arguments["image_grid_thw"].tolist()]

    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        merge = self.merge(model)
        return [[Part((1, h // merge, w // merge))] for h, w in self.sizes(model, encoded)]

    def whole_encoder(self, model: PreTrainedModel | None, media: str) -> str | None:
        return None

    def encoder_blocks(self, model: PreTrainedModel, media: str) -> EncoderBlocks:
        return EncoderBlocks(*self.encoder(model, media))

    def groups(self, model: PreTrainedModel, encoded: Encoded, rows: tuple[int, int]) -> Groups:
        merge, members, first = self.merge(model), [], 0
        sizes = self.sizes(model, encoded)
        for h, w in sizes:
            members.append(grid_groups(h, w, merge) + first)
            first += h * w
        return Groups(torch.cat(members), [(h // merge, w // merge) for h, w in sizes], [1] * len(sizes))

    def group_pixels(self, model: PreTrainedModel, encoded: Encoded, groups: Groups) -> Tensor:
        patches = self.patches(model, encoded)[0].flatten(1)
        return patches[groups.members.to(patches.device)].flatten(1)

    def pool_patches(self, model: PreTrainedModel, encoded: Encoded, calls: list[Tensor]) -> list[list[Tensor]]:
        sizes = self.sizes(model, encoded)
        flat = torch.cat([call.flatten(0, 1) for call in calls])
        found = []
        for (h, w), values in zip(sizes, flat.split([h * w for h, w in sizes]), strict=True):
            pooled = nn.functional.avg_pool2d(values.mT.unflatten(1, (h, w)), self.merge(model))
            found.append([flat_map(pooled)])
        return found

    def patches(self, model: PreTrainedModel, encoded: Encoded) -> Tensor:
        """The processor cuts pictures into patches."""
        return encoded.pixels.float().flatten(1).unflatten(1, (3, -1))[None]
