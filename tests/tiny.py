"""Tiny random models of every family, and prompts for them, built from configs alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

PAD, BOS, IMAGE, VIDEO, START, END = 0, 1, 90, 91, 92, 93
TEXT = dict(
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=None,
)


@dataclass(frozen=True)
class Video:
    """A video of t x h x w visual tokens."""

    t: int
    h: int
    w: int


@dataclass(frozen=True)
class Picture:
    """An image of h x w visual tokens (LLaVA ignores the size: its images are 6 x 6)."""

    h: int
    w: int


class TinyLlava:
    """A random LLaVA-1.5 with 36 tokens per image."""

    name = "llava"
    placeholder = (IMAGE,)

    def build(self, attention: str = "sdpa") -> PreTrainedModel:
        torch.manual_seed(0)
        vision = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=24,
            patch_size=4,
        )
        config = LlavaConfig(
            vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=IMAGE, image_seq_length=36
        )
        return LlavaForConditionalGeneration._from_config(config, attn_implementation=attention).eval()

    def grid(self, picture: Picture) -> tuple[int, int]:
        return 6, 6

    def inputs(self, rows: list[list[Picture | int]], seed: int = 0) -> dict[str, Tensor]:
        """Left-padded batch; an int in a row is that many text tokens."""
        made = torch.Generator().manual_seed(seed)
        ids = [_ids(self, row, made) for row in rows]
        images = [p for row in rows for p in row if isinstance(p, Picture)]
        batch = _padded(ids)
        if images:
            batch["pixel_values"] = torch.randn(len(images), 3, 24, 24, generator=made)
        return batch


class TinyQwen25VL:
    """A random Qwen2.5-VL with a windowed and a full-attention vision block."""

    name = "qwen2_5_vl"
    placeholder = (IMAGE, VIDEO)

    def build(self, attention: str = "sdpa") -> PreTrainedModel:
        torch.manual_seed(0)
        text = TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
        vision = dict(
            depth=3,
            hidden_size=32,
            intermediate_size=48,
            num_heads=2,
            patch_size=4,
            spatial_merge_size=2,
            temporal_patch_size=2,
            window_size=16,
            fullatt_block_indexes=[1],
            out_hidden_size=64,
        )
        ids = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        return Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=attention).eval()

    def grid(self, picture: Picture) -> tuple[int, int]:
        return picture.h, picture.w

    def inputs(self, rows: list[list[Picture | int]], seed: int = 0) -> dict[str, Tensor]:
        made = torch.Generator().manual_seed(seed)
        ids = [_ids(self, row, made) for row in rows]
        images = [p for row in rows for p in row if isinstance(p, Picture)]
        batch = _padded(ids)
        batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE).int() + 2 * (batch["input_ids"] == VIDEO).int()
        videos = [p for row in rows for p in row if isinstance(p, Video)]
        if images:
            batch["image_grid_thw"] = torch.tensor([[1, 2 * p.h, 2 * p.w] for p in images])
            batch["pixel_values"] = _patches(batch["image_grid_thw"], made)
        if videos:
            batch["video_grid_thw"] = torch.tensor([[p.t, 2 * p.h, 2 * p.w] for p in videos])
            batch["pixel_values_videos"] = _patches(batch["video_grid_thw"], made)
            batch["second_per_grid_ts"] = torch.ones(len(videos))
        return batch


def _patches(grids: Tensor, made: torch.Generator) -> Tensor:
    return torch.randn(int(grids.prod(-1).sum()), 3 * 2 * 4 * 4, generator=made)


FAMILIES = {cls.name: cls() for cls in (TinyLlava, TinyQwen25VL)}


def _ids(family: TinyLlava | TinyQwen25VL, row: list[Picture | int], made: torch.Generator) -> list[int]:
    ids = [BOS]
    for part in row:
        if isinstance(part, Picture):
            h, w = family.grid(part)
            ids += [START, *[IMAGE] * (h * w), END]
        elif isinstance(part, Video):
            ids += [START, *[VIDEO] * (part.t * part.h * part.w), END]
        else:
            ids += torch.randint(5, 80, (part,), generator=made).tolist()
    return ids


def _padded(ids: list[list[int]]) -> dict[str, Tensor]:
    longest = max(map(len, ids))
    return {
        "input_ids": torch.tensor([[PAD] * (longest - len(row)) + row for row in ids]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids]),
    }
