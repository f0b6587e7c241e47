"""Qwen2.5-VL: Qwen2-VL with an encoder that works in windows."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenprune.errors import Unsupported
from tokenprune.families.base import Encoded
from tokenprune.families.qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    """`Qwen2_5_VLForConditionalGeneration` and the thinker of Qwen2.5-Omni, whose audio stays as it is."""

    name: ClassVar[str] = "Qwen2.5-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl", "qwen2_5_omni_thinker")
    missing: ClassVar[dict[str, str]] = Qwen2VL.missing | {
        "saliency_first": "its first encoder layers work in windows, which cannot compare tokens of different windows."
    }

    def encoder(self, model: PreTrainedModel, media: str) -> tuple[nn.ModuleList, int]:
        """The last full-attention block: window blocks cannot compare tokens of different windows."""
        visual = self.base(model).visual
        full = [i for i in visual.fullatt_block_indexes if i < len(visual.blocks)]
        if not full:
            raise Unsupported("This Qwen2.5-VL has no full-attention vision block, so it has no saliency signal.")
        return visual.blocks, max(full)

    def block_at(self, model: PreTrainedModel, media: str, depth: float) -> int:
        visual = self.base(model).visual
        wanted = super().block_at(model, media, depth)
        return min((i for i in visual.fullatt_block_indexes if i < len(visual.blocks)), key=lambda i: abs(i - wanted))

    def patches(self, model: PreTrainedModel, encoded: Encoded) -> Tensor:
        """In the order of the windows, as the encoder holds them."""
        unit = model.config.vision_config.spatial_merge_size**2
        whole = super().patches(model, encoded)
        order = _window_index(self.base(model).visual, self._grids(encoded)).to(whole.device, non_blocking=True)
        return whole.unflatten(1, (-1, unit))[:, order].flatten(1, 2)

    def in_order(self, model: PreTrainedModel, merged: Tensor, grids: Tensor) -> Tensor:
        order = _window_index(self.base(model).visual, grids).to(merged.device, non_blocking=True)
        return merged[order.argsort()]


def _window_index(visual: Any, grid: Tensor) -> Tensor:
    """Order in which the encoder holds the merge groups; older transformers have it as a method of the encoder."""
    if hasattr(visual, "get_window_index"):
        return visual.get_window_index(grid)[0]
    from transformers.vision_utils import get_vision_window_index

    return get_vision_window_index(
        grid,
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
    )[0]
