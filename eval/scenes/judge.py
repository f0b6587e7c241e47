"""Asks a model held-out questions and counts the right answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch.nn.functional import interpolate

from eval.scenes.questions import ASK, TYPES, Question, box_iou, distance, is_right
from eval.scenes.world import SIZE, make_scene, rng_for
from tokenprune.chat import Chat

BATCH = 100
LONGEST = {"caption": 20}
SHORT_ANSWER = 4


@dataclass
class Asked:
    """A question with its picture."""

    question: Question
    image: Image.Image


@cache
def questions(kind: str, count: int, split: str = "test") -> list[Asked]:
    """The first `count` questions of a type: one for each scene of the split that can be asked it."""
    return list(islice(_questions(kind, split), count))


def _questions(kind: str, split: str) -> Iterator[Asked]:
    index = 0
    while True:
        rng = rng_for(split, index)
        scene = make_scene(rng)
        question = ASK[kind](np.random.default_rng([2027, TYPES.index(kind), index]), scene)
        if question is not None:
            yield Asked(question, scene.image)
        index += 1


def noise_like(count: int) -> list[Image.Image]:
    """Pictures of noise, for the blind control."""
    rng = np.random.default_rng(99)
    return [Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(count)]


def shrunk(chat: Chat, inputs: Any, side: int) -> dict[str, torch.Tensor]:
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


@torch.inference_mode()
def answers(chat: Chat, asked: list[Asked], images: list[Image.Image] | None = None, side: int = 0) -> list[str]:
    """Greedy answers in batches; `images` replaces the questions' own pictures, `side` makes them smaller."""
    tokenizer, found = chat.processor.tokenizer, []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        shown = [a.image for a in part] if images is None else images[start : start + BATCH]
        texts = [f"<s><user><image>{a.question.text}<assistant>" for a in part]
        inputs = chat.processor(images=shown, text=texts, return_tensors="pt", padding=True)
        longest = LONGEST.get(part[0].question.type, SHORT_ANSWER)
        inputs = shrunk(chat, inputs, side) if side else inputs
        ids = chat.model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        found += [tokenizer.decode(row, skip_special_tokens=True) for row in new.tolist()]
    return found


def score(asked: list[Asked], given: list[str]) -> dict[str, float]:
    """Share of right answers, and for positions the median distance in pixels and the mean IoU of fixed boxes."""
    pairs = [(a.question, text) for a, text in zip(asked, given, strict=True)]
    result = {"right": sum(is_right(q, text) for q, text in pairs) / len(pairs), "questions": len(pairs)}
    if pairs[0][0].type == "position":
        result["median_distance_px"] = round(median(distance(q, text) for q, text in pairs), 2)
        result["mean_box_iou"] = round(sum(box_iou(q, text) for q, text in pairs) / len(pairs), 4)
    return result


def judge(
    chat: Chat, count: int, blind: bool = False, note: str = "", types: Sequence[str] = TYPES, side: int = 0
) -> dict[str, dict[str, float]]:
    """Scores by question type on `count` questions of each; `side`: with pictures of side x side patches."""
    images = noise_like(count) if blind else None
    found = {}
    for kind in track(types, description=note or ("blind" if blind else "dense"), transient=True):
        asked = questions(kind, count)
        found[kind] = score(asked, answers(chat, asked, images, side))
    return found
