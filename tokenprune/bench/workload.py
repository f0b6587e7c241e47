"""What is measured: a model and a prompt with visual tokens, of random weights in a known shape or the user's own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenprune.bench.shapes import SHAPES, VISUAL, Shape
from tokenprune.errors import BadInput, unknown
from tokenprune.families.registry import family_of

BEFORE, AFTER = 4, 32  # text tokens around the image


@dataclass(frozen=True)
class Workload:
    """A model and one batch of prompts for it. images: as for `prune`."""

    name: str
    model: PreTrainedModel
    inputs: dict[str, Any]
    images: str = "each"

    def visual(self) -> Tensor:
        """bool [B, L]: where visual tokens (and their separators) stand in the prompt."""
        ids = self.inputs["input_ids"]
        tokens = family_of(self.model).placeholders(self.model).values()
        return torch.isin(ids, torch.tensor(sorted(tokens), device=ids.device))

    @property
    def batch(self) -> int:
        """Rows of the batch."""
        return len(self.inputs["input_ids"])


def workload(
    shape: str, tokens: int, batch: int = 1, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Workload:
    """A random model of a shape (a name in `SHAPES`), and prompts of so many visual tokens and 36 text tokens."""
    if shape not in SHAPES:
        raise unknown("shape", shape, SHAPES)
    spec = SHAPES[shape]
    if tokens not in spec.frames:
        raise BadInput(f"The shape {shape!r} has prompts of {', '.join(map(str, spec.frames))} visual tokens.")
    frames = spec.frames[tokens]
    size = spec.size(tokens // frames)
    torch.manual_seed(0)
    with torch.device(device):
        model = spec.model._from_config(spec.config(size), dtype=dtype).eval()
        ids = torch.randint(1, VISUAL - 2, (batch, BEFORE + tokens + spec.video + AFTER))
        ids[:, BEFORE : BEFORE + tokens + spec.video] = VISUAL  # a video ends with one newline
        media = patches(model, tokens, batch) if spec.patched else pixels(spec, size, batch, frames)
        media = {name: x.to(dtype) if x.is_floating_point() else x for name, x in media.items()}
        if spec.patched:
            media["mm_token_type_ids"] = (ids == VISUAL).int()
    images = "frames" if frames > 1 and not spec.video else "each"
    return Workload(f"{shape}, {tokens} tokens", model, {"input_ids": ids} | media, images)


def pixels(spec: Shape, size: int, batch: int, frames: int) -> dict[str, Tensor]:
    """Noise as pictures of one size, or as videos of them."""
    found = torch.randn(batch * frames, 3, size, size)
    return {"pixel_values_videos": found.unflatten(0, (batch, frames))} if spec.video else {"pixel_values": found}


def patches(model: PreTrainedModel, tokens: int, batch: int) -> dict[str, Tensor]:
    """Noise as the patches of a picture of so many tokens for each row, as square as that number lets it be."""
    vision = model.config.vision_config
    merge = vision.spatial_merge_size
    rows = next(n for n in range(math.isqrt(tokens), 0, -1) if tokens % n == 0)
    grid = torch.tensor([[1, merge * rows, merge * tokens // rows]] * batch)
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {"pixel_values": torch.randn(batch * tokens * merge**2, values), "image_grid_thw": grid}


def with_pictures_of(work: Workload, tokens: int) -> Workload | None:
    """The same prompts with pictures that had so many tokens from the start; None where the encoder takes pictures of
    one size alone, or rows hold several."""
    visual = work.visual()
    if "image_grid_thw" not in work.inputs or len(work.inputs["image_grid_thw"]) != work.batch:
        return None
    stays = ~visual | (visual.cumsum(1) <= tokens)
    inputs = {name: x[stays].view(work.batch, -1) if x.shape == visual.shape else x for name, x in work.inputs.items()}
    media = patches(work.model, tokens, work.batch)
    like = work.inputs["pixel_values"]
    media = {name: x.to(like.device, like.dtype if x.is_floating_point() else x.dtype) for name, x in media.items()}
    return replace(work, inputs=inputs | media)
