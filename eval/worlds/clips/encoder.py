"""The vision encoder over frames of one size at once, and where every row of a packed prompt stands in time and space.

The library's own encoder goes through the frames one by one; the weights and the sums are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLTextModel,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import get_vision_position_ids

from eval.worlds.base import normalize
from eval.worlds.clips.draw import SIDE, STEPS
from eval.worlds.clips.model import MERGE, PATCH

BASE = 3  # <s> <user> <|vision_start|>


def patches(frames: np.ndarray) -> Tensor:
    """Patches [steps, n, 384] of uint8 frames [2 * steps, H, W, 3], those of one token side by side."""
    x = normalize(frames).unflatten(0, (-1, 2)).unflatten(-2, (-1, MERGE, PATCH)).unflatten(-1, (-1, MERGE, PATCH))
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).flatten(1, 4).flatten(2)


def encode(visual: Qwen2_5_VisionTransformerPretrainedModel, x: Tensor) -> Tensor:
    """Tokens [N, n / 4, d] of patches [N, n, 384] of square frames."""
    count, length, _ = x.shape
    side = int(length**0.5)
    grid = torch.tensor([[1, side, side]], device=x.device)
    rope = visual.rotary_pos_emb(x, get_vision_position_ids(grid, MERGE))
    x = visual.patch_embed(x.flatten(0, 1)).unflatten(0, (count, length))
    for block in visual.blocks:
        y, attention = block.norm1(x), block.attn
        q, k, v = attention.qkv(y).view(count, length, 3, attention.num_heads, -1).unbind(2)
        q, k = apply_rotary_pos_emb_vision(q, k, *rope)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        paid = (q @ k.mT * attention.scaling).softmax(-1).to(v.dtype) @ v
        x = x + attention.proj(paid.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return visual.merger(x).unflatten(0, (count, -1))


@dataclass(frozen=True)
class Prompt:
    """How a clip stands in a prompt: as a video of steps, or as pictures, each of one frame in two."""

    pictures: int = 0  # 0: a video; else how many frames, evenly spread, the last of them among them
    late: bool = False  # whether text after a video goes on behind its last step in time, as in some engines

    @property
    def frames(self) -> list[int]:
        """Numbers of the frames that each step shows, twice where it is a picture."""
        if not self.pictures:
            return list(range(2 * STEPS))
        every = 2 * STEPS // self.pictures
        return [f for f in range(every - 1, 2 * STEPS, every) for _ in range(2)]


def rope_of(text: Qwen2_5_VLTextModel, prompt: Prompt, questions: int, size: int) -> tuple[Tensor, Tensor]:
    """cos and sin [1, rows, e] of a clip and of `questions` packs of `size` tokens, each right after the clip.

    Text goes on one side length after the first token of a video, as transformers has it (in time it lies within the
    clip), or behind its last step, as other engines do.
    """
    h, w = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    grid = torch.stack([torch.zeros_like(h), h, w]).flatten(1)
    rows, start = [torch.arange(BASE).expand(3, -1)], BASE
    if prompt.pictures:
        for _ in range(prompt.pictures):
            marks = start + SIDE + torch.arange(2)
            rows += [grid + start, marks.expand(3, -1)]
            start += SIDE + 2
        rows[-1], start = rows[-1][:, :1], start - 2
    else:
        rows += [grid + torch.tensor([[step], [0], [0]]) + start for step in range(STEPS)]
        start += STEPS if prompt.late else SIDE
        rows.append(torch.full((3, 1), start))
    rows.append((start + 1 + torch.arange(size)).repeat(questions).expand(3, -1))
    like = text.embed_tokens.weight
    return text.rotary_emb(like, torch.cat(rows, dim=1)[:, None].to(like.device))
