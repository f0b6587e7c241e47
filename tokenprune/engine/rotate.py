"""Cached keys at other positions than those they were made at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenprune.engine.listen import project
from tokenprune.errors import Unsupported
from tokenprune.signals import taps


def rotate(text_model: Any, keys: Tensor, change: Tensor) -> Tensor:
    """Rotated keys [1, H, R, e] at positions that differ by `change` int64 [axes, R]."""
    given = change[:, None] if len(change) > 1 else change
    cos, sin = (x.float()[:, None] for x in text_model.rotary_emb(keys.float(), given))
    width = cos.shape[-1]
    x = keys[..., :width].float()
    first, second = x.chunk(2, dim=-1)
    turned = x * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned.to(keys.dtype), keys[..., width:]], dim=-1)


@torch.no_grad()
def check_rotation(text_model: Any) -> None:
    """Raise `Unsupported` where turning a key to another position does not give what the model computes there."""
    module, config = text_model.layers[0].self_attn, text_model.config
    weight = next(module.parameters())
    hidden = torch.randn(1, 2, config.hidden_size, generator=torch.Generator().manual_seed(0)).to(weight)
    axes = len(getattr(text_model.rotary_emb, "mrope_section", [0]))
    before = torch.tensor([[5, 900]] * axes, device=weight.device)
    after = before - torch.tensor([[3, 700], [1, 20], [0, 650], [2, 300]][:axes], device=weight.device)
    keys = []
    taps.install()
    try:
        for positions in (before, after):
            rope = text_model.rotary_emb(hidden, positions[:, None] if axes > 1 else positions)
            keys.append(project(module, hidden, rope)[1])
    finally:
        taps.uninstall()
    turned = rotate(text_model, keys[0], after - before)
    if turned.shape != keys[1].shape or not torch.allclose(turned, keys[1], atol=0.02 * keys[1].abs().max().item()):
        raise Unsupported(
            "The keys of this model cannot be turned to other positions, so its stream cannot be renumbered. Use "
            "positions='original'."
        )
