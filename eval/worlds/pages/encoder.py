"""The vision encoder over pages of one size at once, and where every row of a packed prompt stands.

The library's own encoder goes through pictures one by one; the weights and the sums are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextModel,
    Qwen3VLVisionModel,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from eval.worlds.pages.model import MERGE, PATCH
from eval.worlds.pages.sheet import TOKEN

BASE = 3  # <s> <user> <|vision_start|>


def patches(pixels: Tensor) -> Tensor:
    """Patches [N, n, 3 * 64] of pages [N, 3, H, W], those of one token side by side."""
    x = pixels.unflatten(-2, (-1, MERGE, PATCH)).unflatten(-1, (-1, MERGE, PATCH))
    return x.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(1, 4).flatten(2)


def encode(visual: Qwen3VLVisionModel, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Tokens [N, n, d] of pages [N, 3, H, W], and the DeepStack planes, each as the tokens.

    A picture is a clip of two frames that are the same, so both halves of the patch embedding see one patch.
    """
    count = len(pixels)
    grid = torch.tensor([[1, pixels.shape[-2] // PATCH, pixels.shape[-1] // PATCH]], device=pixels.device)
    rope = visual.rotary_pos_emb(pixels, get_vision_position_ids(grid, MERGE))
    index, weight = get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=visual.num_grid_per_side,
        mode=visual.interpolation_mode,
        align_corners=visual.interpolation_align_corners,
        spatial_merge_size=MERGE,
    )
    embed = visual.patch_embed.proj
    x = functional.linear(patches(pixels), embed.weight.sum(2).flatten(1), embed.bias)
    x = x + (visual.pos_embed(index) * weight[..., None]).sum(1).to(x.dtype)
    planes = []
    for i, block in enumerate(visual.blocks):
        y, attention = block.norm1(x), block.attn
        q, k, v = attention.qkv(y).view(count, x.shape[1], 3, attention.num_heads, -1).unbind(2)
        q, k = apply_rotary_pos_emb_vision(q, k, *rope)
        q, k, v = (t.transpose(1, 2).to(v.dtype) for t in (q, k, v))
        paid = functional.scaled_dot_product_attention(q, k, v)
        x = x + attention.proj(paid.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
        if i in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(i)]
            planes.append(merger(x).unflatten(0, (count, -1)))
    return visual.merger(x).unflatten(0, (count, -1)), planes


def rope_of(text: Qwen3VLTextModel, pixels: Tensor, packs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """cos and sin [1, rows, e] of a page and of packs of (questions, tokens), each question right after the page.

    Text goes on one longer side after the page's first token, as the library has it.
    """
    h, w = (side // TOKEN for side in pixels.shape[-2:])
    t, y, x = torch.meshgrid(torch.arange(1), torch.arange(h), torch.arange(w), indexing="ij")
    page = torch.stack([t, y, x]).flatten(1) + BASE
    head = torch.arange(BASE).expand(3, -1)
    start = BASE + max(h, w)
    asked = [(start + 1 + torch.arange(size)).repeat(count).expand(3, -1) for count, size in packs]
    rows = torch.cat([head, page, torch.full((3, 1), start), *asked], dim=1).to(pixels.device)
    return text.rotary_emb(text.embed_tokens.weight, rows[:, None])
