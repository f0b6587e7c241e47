"""One forward pass over a picture and many questions, where each question sees the picture and itself only.

The weights are those of the Hugging Face model; only the attention pattern is written out here, because the blocks
that a dense mask would throw away are most of the work.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

Rope = tuple[Tensor, Tensor]


def packed_hidden(
    text: PreTrainedModel,
    prefix: Tensor,
    packs: list[Tensor],
    rope: Rope | None = None,
    planes: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Final hidden states of every question.

    `prefix` [B, P, D] are the embeddings all questions share; each pack [B, G, S] holds the ids of G questions. rope:
    cos and sin [B or 1, P + all G * S, e]; default: every question starts at position P. planes [B, P, D] each: what
    is added to the prefix behind the first layer, the second, and so on. Returns one [B, G, S, D] per pack.
    """
    batch, length, width = prefix.shape
    shapes = [pack.shape[1:] for pack in packs]
    texts = [text.embed_tokens(pack.flatten(1)) for pack in packs]
    x = torch.cat([prefix, *texts], dim=1)
    if rope is None:
        places = [torch.arange(length), *((length + torch.arange(s)).repeat(g) for g, s in shapes)]
        rope = text.rotary_emb(x, torch.cat(places)[None].to(x.device))
    sizes = [length, *(g * s for g, s in shapes)]
    for i, layer in enumerate(text.layers):
        attended = _attend(layer.self_attn, layer.input_layernorm(x), rope, sizes, shapes)
        x = x + layer.self_attn.o_proj(attended)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        if i < len(planes):
            x = x + nn.functional.pad(planes[i], (0, 0, 0, x.shape[1] - length))
    x = text.norm(x)
    parts = x.split(sizes, dim=1)[1:]
    return [part.reshape(batch, *shape, width) for part, shape in zip(parts, shapes, strict=True)]


def _attend(attention: nn.Module, x: Tensor, rope: tuple, sizes: list[int], shapes: list[tuple[int, int]]) -> Tensor:
    batch, rows, _ = x.shape
    heads = (batch, rows, -1, attention.head_dim)
    q, k, v = (p(x).view(heads) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    q, k = apply_rotary_pos_emb(q, k, *rope)
    k, v = (t.repeat_interleave(attention.num_key_value_groups, dim=1) for t in (k, v))
    q, v = (q * attention.scaling).to(v.dtype), v
    k = k.to(v.dtype)
    (q0, *qs), (k0, *ks), (v0, *vs) = (t.split(sizes, dim=2) for t in (q, k, v))
    outputs = [(q0 @ k0.mT + _causal(sizes[0], q0)).softmax(-1).to(v.dtype) @ v0]
    for q1, k1, v1, (count, span) in zip(qs, ks, vs, shapes, strict=True):
        own = (batch, k1.shape[1], count, span)
        to_prefix = (q1 @ k0.mT).view(*own, -1)
        to_self = q1.view(*own, -1) @ k1.view(*own, -1).mT + _causal(span, q1)
        weights = torch.cat([to_prefix, to_self], dim=-1).softmax(-1).to(v.dtype)
        prefix_weights, self_weights = weights.split([sizes[0], span], dim=-1)
        mixed = prefix_weights.flatten(2, 3) @ v0 + (self_weights @ v1.view(*own, -1)).flatten(2, 3)
        outputs.append(mixed)
    return torch.cat(outputs, dim=2).transpose(1, 2).reshape(batch, rows, -1)


def _causal(n: int, like: Tensor) -> Tensor:
    return torch.full((n, n), float("-inf"), dtype=like.dtype, device=like.device).triu(1)
