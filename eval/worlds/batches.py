"""Training batches: pixels, labels and packed questions, each batch a pure function of its number."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from eval.worlds.base import SPLITS, Lesson, Question, World

TENSORS = ("pixels", "owner", "flags", "shown")  # of a lesson, and stacked of a batch


@dataclass
class Pack:
    """G questions about each of B items, every one padded to S tokens."""

    ids: Tensor  # int64 [B, G, S]
    weight: Tensor  # float32 [B, G, S], of each id in the loss
    types: Tensor  # int64 [B, G], index into the world's types

    def to(self, device: str) -> Pack:
        """All but the types on a device."""
        return Pack(self.ids.to(device), self.weight.to(device), self.types)


@dataclass
class Batch:
    """B lessons; what their tensors are says `Lesson`."""

    pixels: Tensor
    owner: Tensor
    flags: Tensor
    shown: Tensor
    packs: list[Pack]  # none where nothing is asked, as in a drill
    shared: Any  # what its lessons have in common

    def to(self, device: str) -> Batch:
        """The same on a device."""
        tensors = {name: getattr(self, name).to(device) for name in TENSORS}
        return replace(self, **tensors, packs=[pack.to(device) for pack in self.packs])


def encode(
    tokenizer: PreTrainedTokenizerFast, question: Question, length: int, weight: float = 1.0
) -> tuple[list[int], list[float]]:
    """Ids of question, <assistant>, answer, </s>, padded; the loss weight on every id of the answer and on </s>."""
    head, tail = (
        tokenizer(text, add_special_tokens=False).input_ids
        for text in (question.text + "<assistant>", question.answer + "</s>")
    )
    pad = length - len(head) - len(tail)
    return head + tail + [tokenizer.pad_token_id] * pad, [0.0] * len(head) + [weight] * len(tail) + [0.0] * pad


class Batches(IterableDataset):
    """Endless batches of one split from batch `start` on, taken in turns by workers: their order is always the same."""

    def __init__(
        self,
        world: World,
        tokenizer: PreTrainedTokenizerFast,
        split: str,
        size: int,
        start: int = 0,
        lesson: Callable[[np.random.Generator, Any], Lesson] | None = None,
    ) -> None:
        """size: lessons in a batch, at most. lesson: makes one; default: the world's."""
        self.world, self.tokenizer, self.split, self.size, self.start = world, tokenizer, split, size, start
        self.lesson = lesson or world.lesson

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in itertools.count(self.start + first, step):
            yield self.batch(number)

    def batch(self, number: int) -> Batch:
        """The batch of a number."""
        first = number * self.size
        shared = self.world.share(np.random.default_rng([self.world.seed, SPLITS[self.split], number, self.size]))
        count = self.world.fit(self.size, shared)
        lessons = [self.lesson(self.world.rng(self.split, first + i), shared) for i in range(count)]
        tensors = {name: torch.stack([getattr(lesson, name) for lesson in lessons]) for name in TENSORS}
        packs = zip(*(lesson.asked for lesson in lessons), strict=True)
        lengths = self.world.lengths
        packed = [self._pack(pack, n) for pack, n in zip(packs, lengths, strict=False)]
        return Batch(**tensors, packs=packed, shared=shared)

    def check(self) -> list[Batch]:
        """The first batches, which a model is checked on."""
        return [self.batch(number) for number in range(self.world.check // self.size)]

    def _pack(self, asked: tuple[list[Question], ...], length: int) -> Pack:
        """asked: for each lesson its questions."""
        weights, types = self.world.weights, self.world.types
        pairs = [[encode(self.tokenizer, q, length, weights.get(q.type, 1.0)) for q in own] for own in asked]
        return Pack(
            ids=torch.tensor([[ids for ids, _ in own] for own in pairs]),
            weight=torch.tensor([[weight for _, weight in own] for own in pairs]),
            types=torch.tensor([[types.index(q.type) for q in own] for own in asked]),
        )
