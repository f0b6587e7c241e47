"""Training batches: pixels, labels and packed questions, each batch a pure function of its number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from eval.worlds.base import Question, World


@dataclass
class Pack:
    """G questions about each of B items, every one padded to S tokens."""

    ids: Tensor  # int64 [B, G, S]
    weight: Tensor  # float32 [B, G, S], of each id in the loss
    types: Tensor  # int64 [B, G], index into the world's types


@dataclass
class Batch:
    """B lessons; what their tensors are says `Lesson`."""

    pixels: Tensor
    owner: Tensor
    flags: Tensor
    shown: Tensor
    packs: list[Pack]

    def split(self, size: int) -> list[Batch]:
        """The same in pieces of `size` lessons."""

        def part(start: int) -> Batch:
            rows = slice(start, start + size)
            packs = [Pack(p.ids[rows], p.weight[rows], p.types[rows]) for p in self.packs]
            return Batch(self.pixels[rows], self.owner[rows], self.flags[rows], self.shown[rows], packs)

        return [part(start) for start in range(0, len(self.pixels), size)]


def encode(
    tokenizer: PreTrainedTokenizerFast, question: Question, length: int, weight: float = 1.0
) -> tuple[list[int], list[float]]:
    """Ids of question, <assistant>, answer, </s>, padded; the loss weight on every id of the answer and on </s>."""
    head = tokenizer.convert_tokens_to_ids([*question.text.split(), "<assistant>"])
    tail = tokenizer.convert_tokens_to_ids([*question.answer.split(), "</s>"])
    pad = length - len(head) - len(tail)
    return head + tail + [tokenizer.pad_token_id] * pad, [0.0] * len(head) + [weight] * len(tail) + [0.0] * pad


class Batches(IterableDataset):
    """Endless batches of one split from batch `start` on."""

    def __init__(self, world: World, tokenizer: PreTrainedTokenizerFast, split: str, size: int, start: int = 0) -> None:
        self.world, self.tokenizer, self.split, self.size, self.start = world, tokenizer, split, size, start

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        number = self.start
        while True:
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> Batch:
        """The batch of a number."""
        first = number * self.size
        lessons = [self.world.lesson(self.world.rng(self.split, first + i)) for i in range(self.size)]
        names = ("pixels", "owner", "flags", "shown")
        tensors = {name: torch.stack([getattr(lesson, name) for lesson in lessons]) for name in names}
        packs = zip(*(lesson.asked for lesson in lessons), strict=True)
        lengths = self.world.lengths
        return Batch(**tensors, packs=[self._pack(pack, n) for pack, n in zip(packs, lengths, strict=True)])

    def _pack(self, asked: tuple[list[Question], ...], length: int) -> Pack:
        """asked: for each lesson its questions."""
        weights, types = self.world.weights, self.world.types
        pairs = [[encode(self.tokenizer, q, length, weights.get(q.type, 1.0)) for q in own] for own in asked]
        return Pack(
            ids=torch.tensor([[ids for ids, _ in own] for own in pairs]),
            weight=torch.tensor([[weight for _, weight in own] for own in pairs]),
            types=torch.tensor([[types.index(q.type) for q in own] for own in asked]),
        )
