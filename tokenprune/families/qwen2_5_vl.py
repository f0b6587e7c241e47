"""Qwen2.5-VL: images and videos of any size, M-RoPE positions, a windowed vision encoder with 2 x 2 merging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenprune.errors import MissingSignal, Unsupported
from tokenprune.families.base import Family, Placeholders, Span


class Qwen25VL(Family):
    """`Qwen2_5_VLForConditionalGeneration`."""

    name: ClassVar[str] = "Qwen2.5-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)

    def placeholders(self, model: PreTrainedModel) -> dict[str, int]:
        return {"image": model.config.image_token_id, "video": model.config.video_token_id}

    def spans(self, model: PreTrainedModel, runs: Sequence[Placeholders], positions: Tensor) -> list[Span]:
        """A run is one image or video (the template puts vision_start and vision_end around it).

        The grid is read off the M-RoPE ids: generate() drops `image_grid_thw` before prefill, the ids always arrive.
        """
        for run in runs:
            # A cut image touches an edge, and whole rows of it would pass for a smaller image.
            if run.start == 0 or run.start + run.length == positions.shape[-1]:
                raise Unsupported(
                    f"Row {run.row}: an image or video starts or ends this piece of the prompt, without its start and "
                    "end tokens. What chunked prefill cuts cannot be pruned; prefill in one piece."
                )
        pieces = [positions[:, run.row, run.start : run.start + run.length] for run in runs]
        ends = torch.stack([torch.stack([piece.amin(-1), piece.amax(-1)]) for piece in pieces]).tolist()
        return [self._span(model, run, low, high) for run, (low, high) in zip(runs, ends, strict=True)]

    def _span(self, model: PreTrainedModel, run: Placeholders, low: list[int], high: list[int]) -> Span:
        if len(low) == 3:
            h, w = high[1] - low[1] + 1, high[2] - low[2] + 1
            t = run.length // (h * w)
            if t * h * w == run.length and (t == 1) == (low[0] == high[0]):
                media = "video" if run.token == model.config.video_token_id else "image"
                return Span(run.row, run.start, (t, h, w), media)
        raise Unsupported(
            f"Row {run.row}: the position ids of {run.length} visual tokens do not form a grid. Pass everything the "
            "processor returns (mm_token_type_ids and image_grid_thw too), and prefill in one piece."
        )

    def tower(self, model: PreTrainedModel) -> nn.Module:
        return self.base(model).visual

    def saliency_module(self, model: PreTrainedModel) -> nn.Module:
        """The last full-attention block: window blocks cannot compare tokens of different windows."""
        visual = self.tower(model)
        full = [i for i in visual.fullatt_block_indexes if i < len(visual.blocks)]
        if not full:
            raise Unsupported("This Qwen2.5-VL has no full-attention vision block, so it has no saliency signal.")
        return visual.blocks[max(full)].attn

    def saliency(
        self, model: PreTrainedModel, calls: list[Tensor], variant: str, tower_inputs: dict[str, Any]
    ) -> list[Tensor]:
        if variant == "cls":
            raise MissingSignal("Qwen2.5-VL's vision encoder has no CLS token. Use source='received'.")
        visual = self.tower(model)
        grid = tower_inputs["grid_thw"]
        unit = visual.spatial_merge_unit
        merged = torch.cat([call.flatten() for call in calls]).unflatten(0, (-1, unit)).mean(-1)
        order = _window_index(visual, grid).to(merged.device)
        return list(merged[order.argsort()].split((grid.prod(-1) // unit).tolist()))


def _window_index(visual: nn.Module, grid: Tensor) -> Tensor:
    """Order in which the encoder holds the merge groups; older transformers have it as a method of the encoder."""
    if hasattr(visual, "get_window_index"):
        return visual.get_window_index(grid)[0]
    from transformers.vision_utils import get_vision_window_index

    config = {"spatial_merge_size": visual.spatial_merge_size, "window_size": visual.window_size}
    return get_vision_window_index(grid, **config, patch_size=visual.patch_size)[0]
