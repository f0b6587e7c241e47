"""The baseline that needs no method: the picture itself made smaller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn.functional import interpolate

from eval.worlds.base import World
from eval.worlds.judge import judge, sum_scores
from tokenprune import prune
from tokenprune.chat import Chat

RESIZED = "resized image"


def shrink(chat: Chat, side: int, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same prompts with a picture of side x side patches: fewer pixels, fewer placeholders."""
    vision = chat.model.config.vision_config
    whole, size = vision.image_size // vision.patch_size, side * vision.patch_size
    pixels = interpolate(inputs["pixel_values"], size=(size, size), mode="bicubic", antialias=True)
    ids = inputs["input_ids"]
    image = ids == chat.model.config.image_token_id
    stays = ~image | (image.cumsum(1) <= side * side)
    length = ids.shape[1] - whole * whole + side * side
    rows = {name: inputs[name][stays].view(len(ids), length) for name in ("input_ids", "attention_mask")}
    return rows | {"pixel_values": pixels}


@contextmanager
def any_size(chat: Chat) -> Iterator[None]:
    """While open, the vision tower interpolates its position embeddings to the picture's size."""
    handle = chat.model.base_model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | {"interpolate_pos_encoding": True}), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


def judge_resized(world: World, chat: Chat, keep: float, count: int) -> dict[str, Any]:
    """A cell of the comparison for pictures of the largest square of patches that the budget allows."""
    side = int((world.tokens * keep) ** 0.5)
    with any_size(chat):
        scores = judge(world, chat, count, note=f"{RESIZED} {keep}", change=partial(shrink, chat, side))
    with prune(chat.model, "uniform", keep=side * side) as run:  # a prompt of the same length
        judge(world, chat, count, types=world.types[-1:])
        report = run.report()
    return {
        **sum_scores(scores),
        "average_tokens": side * side,
        "final_tokens": side * side,
        "flops": report.flops / report.dense_flops,
    }
