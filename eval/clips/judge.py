"""Asks the video model held-out questions and counts the right answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from transformers import BatchFeature

from eval.clips.questions import ASK, TYPES, Question, is_right
from eval.clips.world import FRAMES, SIZE, make_clip, rng_for
from tokenprune.chat import Chat
from tokenprune.media.clip import Clip

BATCH = 20
FPS = 8.0  # of which two frames make a step of a quarter of a second
LONGEST = 3  # tokens of an answer and its end


@dataclass
class Asked:
    """A question with its clip."""

    question: Question
    clip: Clip


def shown(pixels: np.ndarray) -> Clip:
    """Frames uint8 [n, H, W, 3] as a video."""
    return Clip([Image.fromarray(frame) for frame in pixels], [i / FPS for i in range(len(pixels))], len(pixels))


@cache
def questions(kind: str, count: int, split: str = "test") -> list[Asked]:
    """The first `count` questions of a type: one for each clip of the split that can be asked it."""
    return list(islice(_questions(kind, split), count))


def _questions(kind: str, split: str) -> Iterator[Asked]:
    index = 0
    while True:
        clip = make_clip(rng_for(split, index))
        question = ASK[kind](np.random.default_rng([2027, TYPES.index(kind), index]), clip)
        if question is not None:
            yield Asked(question, shown(clip.pixels))
        index += 1


@cache
def noise(count: int) -> list[Clip]:
    """Clips of noise, for the blind control."""
    rng = np.random.default_rng(99)
    return [shown(rng.integers(0, 256, (FRAMES, SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(count)]


@cache
def prepared(processor: Any, kind: str, count: int, start: int, blind: bool) -> BatchFeature:
    """Model inputs of the batch of questions that begins at `start`; the same for every method that is compared."""
    part = questions(kind, count)[start : start + BATCH]
    videos = noise(count)[start : start + BATCH] if blind else [a.clip for a in part]
    asked = [[{"type": "video"}, {"type": "text", "text": a.question.text}] for a in part]
    turns = [[{"role": "user", "content": content}] for content in asked]
    texts = [processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]
    return processor(text=texts, videos=videos, padding=True)


@torch.inference_mode()
def answers(chat: Chat, kind: str, count: int, blind: bool = False) -> list[str]:
    """Greedy answers to the first `count` questions of a type, in batches; blind: to clips of noise."""
    found = []
    for start in range(0, count, BATCH):
        inputs = prepared(chat.processor, kind, count, start, blind).to(chat.model.device)
        ids = chat.model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        found += [chat.processor.decode(row, skip_special_tokens=True) for row in new.tolist()]
    return found


def judge(
    chat: Chat, count: int, blind: bool = False, note: str = "", types: Sequence[str] = TYPES
) -> dict[str, float]:
    """Share of right answers by question type, on `count` questions of each."""
    found = {}
    for kind in track(types, description=note or ("blind" if blind else "dense"), transient=True):
        asked, given = questions(kind, count), answers(chat, kind, count, blind)
        found[kind] = sum(is_right(a.question, text) for a, text in zip(asked, given, strict=True)) / count
    return found
