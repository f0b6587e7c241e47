"""Asks a model held-out questions and counts the right answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from eval.worlds.base import Question, World, is_right
from tokenprune.chat import Chat
from tokenprune.media.clip import Clip

Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@dataclass(frozen=True, eq=False)
class Asked:
    """A question with its picture or clip; itself by identity, so that its model inputs can be kept."""

    question: Question
    shown: Image.Image | Clip


@cache
def questions(world: World, kind: str, count: int, split: str = "test") -> list[Asked]:
    """The first `count` questions of a type: one for each item of the split that can be asked it."""
    return list(islice(_questions(world, kind, split), count))


def _questions(world: World, kind: str, split: str) -> Iterator[Asked]:
    index = 0
    while True:
        drawn = world.draw(world.rng(split, index))
        question = world.ask[kind](np.random.default_rng([2027, world.types.index(kind), index]), drawn)
        if question is not None:
            yield Asked(question, world.show(drawn.pixels))
        index += 1


@cache
def noise(world: World, count: int) -> list[Image.Image | Clip]:
    """Pictures or clips of noise, for the blind control."""
    rng = np.random.default_rng(99)
    return [world.show(rng.integers(0, 256, world.shape, dtype=np.uint8)) for _ in range(count)]


@lru_cache(maxsize=64)  # a comparison asks every method the same batches; a held-out report asks each of many once
def prepare(world: World, processor: Any, asked: tuple[Asked, ...]) -> Any:
    """Model inputs of a batch of questions."""
    contents = [[{"type": world.media}, {"type": "text", "text": a.question.text}] for a in asked]
    turns = [[{"role": "user", "content": content}] for content in contents]
    texts = [processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]
    shown = {f"{world.media}s": [a.shown for a in asked]}
    return processor(text=texts, **shown, padding=True, return_tensors="pt")


@torch.inference_mode()
def answers(world: World, chat: Chat, asked: Sequence[Asked], change: Change | None = None) -> list[str]:
    """Greedy answers in batches to questions of one type, pictures of one size side by side; `change`: of the model
    inputs."""
    longest, found = world.longest(asked[0].question.type), {}
    by_size = sorted(asked, key=lambda a: a.shown.size if isinstance(a.shown, Image.Image) else ())
    for start in range(0, len(asked), world.judged_at_once):
        part = tuple(by_size[start : start + world.judged_at_once])
        inputs = prepare(world, chat.processor, part).to(chat.model.device)
        inputs = inputs if change is None else change(inputs)
        ids = chat.model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        found |= {
            a: chat.processor.decode(row, skip_special_tokens=True) for a, row in zip(part, new.tolist(), strict=True)
        }
    return [found[a] for a in asked]


def score(world: World, asked: Sequence[Asked], given: Sequence[str]) -> dict[str, float]:
    """Share of right answers to questions of one type, and what else the world measures."""
    pairs = [(a.question, text) for a, text in zip(asked, given, strict=True)]
    return {"right": sum(is_right(*pair) for pair in pairs) / len(pairs), **world.measure(pairs)}


def judge(
    world: World,
    chat: Chat,
    count: int,
    blind: bool = False,
    note: str = "",
    types: Sequence[str] | None = None,
    change: Change | None = None,
) -> dict[str, dict[str, float]]:
    """Scores by question type on `count` questions of each; blind: noise is shown; change: see `answers`."""
    found = {}
    for kind in track(types or world.types, description=note or ("blind" if blind else "dense"), transient=True):
        asked = questions(world, kind, count)
        if blind:
            asked = [replace(a, shown=shown) for a, shown in zip(asked, noise(world, count), strict=True)]
        found[kind] = score(world, asked, answers(world, chat, asked, change))
    return found


def sum_scores(scores: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Shares of right answers by type, and their mean."""
    types = {kind: found["right"] for kind, found in scores.items()}
    return {"types": types, "all": sum(types.values()) / len(types)}
