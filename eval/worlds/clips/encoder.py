"""The vision encoder over frames of one size at once, and where every row of a packed prompt stands in time and space.

The library's own encoder goes through the frames one by one; the weights and the sums are the same.
"""

from __future__ import annotations

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
    rope = visual.rotary_pos_emb(x, get_vision_position_ids(torch.tensor([[1, side, side]]), MERGE))
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


def rope_of(text: Qwen2_5_VLTextModel, questions: int, size: int) -> tuple[Tensor, Tensor]:
    """cos and sin [1, rows, e] of a clip and of `questions` packs of `size` tokens, each right after the clip.

    Text goes on one side length after the clip's first token, as the library has it: in time it lies within the clip.
    """
    t, h, w = torch.meshgrid(torch.arange(STEPS), torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    clip = torch.stack([t, h, w]).flatten(1) + BASE
    head = torch.arange(BASE).expand(3, -1)
    end = torch.full((3, 1), BASE + SIDE)
    prefix = torch.cat([head, clip, end], dim=1)
    own = (BASE + SIDE + 1 + torch.arange(size)).repeat(questions).expand(3, -1)
    return text.rotary_emb(text.embed_tokens.weight, torch.cat([prefix, own], dim=1)[:, None])
