"""What a world is: pictures or clips drawn from a seed, questions about them, and a model that learns to answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

import eval.tasks.utils as tasks
from tokenprune.chat import Chat
from tokenprune.media.clip import Clip

SPLITS = {"train": 0, "test": 1, "demo": 2, "validation": 3}
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
Item = TypeVar("Item")


@dataclass(frozen=True)
class Question:
    """A question with its reference answer; `target` is the thing asked for, where answers are measured against it."""

    type: str
    text: str
    answer: str
    target: Any = None


def is_right(question: Question, answer: str) -> bool:
    """Exact words, but: a position counts within one patch on both axes, a time within one step, a caption as an
    unordered list."""
    return tasks.is_right(question.type, question.answer, answer)


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item | None:
    """One of the items, or None where there are none."""
    return items[int(rng.integers(len(items)))] if items else None


def normalize(pixels: np.ndarray) -> Tensor:
    """float32 [..., 3, H, W] of uint8 [..., H, W, 3], as CLIP wants it."""
    return (torch.from_numpy(pixels).movedim(-1, -3) / 255 - MEAN) / STD


@dataclass(frozen=True)
class Field:
    """One attribute of what a visual token shows.

    words: its values, in the order of their labels. unnamed: how many values come before them that no word names.
    weights: of all values in the loss of the tower; default: 1.
    """

    name: str
    words: tuple[str, ...]
    unnamed: int = 0
    weights: tuple[float, ...] = ()

    @property
    def values(self) -> int:
        return self.unnamed + len(self.words)


@dataclass
class Settings:
    """Everything that decides the weights, written to the log."""

    tower_batch: int
    decoder_batch: int
    tower_steps: int
    decoder_steps: int
    align_until: float  # part of the decoder stage after which the side loss is gone
    seed: int = 7
    tower_lr: float = 1e-3
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    align_weight: float = 0.5


@dataclass
class Lesson:
    """A clip of T steps, or a picture as a clip of one step, with what there is to learn about it."""

    pixels: Tensor  # [T, ...] what the vision encoder takes
    owner: Tensor  # int64 [T, n, fields] values of the fields on each visual token, -1 for background
    flags: Tensor  # [T, ...] 0 or 1, as the head of the flags gives them or of a shape that expands to it
    shown: Tensor  # int64 [S] steps that the tower learns from
    asked: tuple[list[Question], ...]  # a pack of questions for each of the world's `lengths`


class Seen(NamedTuple):
    """What the vision encoder gives for pictures or steps [N, ...]."""

    tokens: Tensor  # [N, n, width] visual tokens, which the heads of the tower read
    states: Tensor  # what the head of the flags reads
    planes: Sequence[Tensor] = ()  # [N, n, width] what the language model adds behind its first layers (DeepStack)


class World(ABC):
    """Pictures or clips, each a pure function of (split, index); questions; the model and how it is trained."""

    name: ClassVar[str]  # of its result files
    title: ClassVar[str]  # of its comparison
    media: ClassVar[Literal["image", "video"]]
    model: ClassVar[Path]  # the bundled model
    seed: ClassVar[int]
    shape: ClassVar[tuple[int, ...]]  # of the pixels, uint8 [..., H, W, 3]
    tokens: ClassVar[int]  # visual tokens of a prompt

    # questions
    ask: ClassVar[dict[str, Callable[[np.random.Generator, Any], Question | None]]]  # by type
    judged_at_once: ClassVar[int]  # questions in a batch
    heldout_count: ClassVar[int]  # questions of each type
    compare_count: ClassVar[int]

    # comparison
    decodes: ClassVar[bool] = False  # whether methods of decoding steps are compared
    both_sides: ClassVar[bool] = False  # whether the encoder's work and the time to the first token are told too
    baselines: ClassVar[dict[str, Callable[[World, Chat, float, int], dict[str, Any]]]] = {}  # those without a method

    # training
    settings: ClassVar[Settings]
    check: ClassVar[int]  # validation items, a multiple of both batch sizes
    pack: ClassVar[tuple[str, ...]]  # types of the questions of the first pack
    lengths: ClassVar[tuple[int, ...]]  # of each pack: tokens of the longest question with its answer
    weights: ClassVar[dict[str, float]] = {}  # of types in the loss; others: 1
    fields: ClassVar[tuple[Field, ...]]
    flag: ClassVar[str]
    flags: ClassVar[int]  # outputs of the head of the flags
    width: ClassVar[int]  # channels that the heads of the tower read
    head: ClassVar[tuple[str, ...]]  # words before the visual tokens
    compiles: ClassVar[bool] = True  # whether batches are of one shape, so that compiling them pays
    tail: ClassVar[tuple[str, ...]] = ()  # and between them and the question

    @property
    def types(self) -> tuple[str, ...]:
        """The question types."""
        return tuple(self.ask)

    def rng(self, split: str, index: int) -> np.random.Generator:
        """Independent stream for one item; the splits never share a seed."""
        return np.random.default_rng([self.seed, SPLITS[split], index])

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Any:
        """A scene or clip, whose `pixels` are of `shape`."""

    @abstractmethod
    def show(self, pixels: np.ndarray) -> Image.Image | Clip:
        """Pixels as a prompt takes them."""

    @abstractmethod
    def longest(self, kind: str) -> int:
        """Tokens that an answer of a type may have."""

    def measure(self, pairs: list[tuple[Question, str]]) -> dict[str, float]:
        """What is told of questions of one type and their answers beside the share of right ones."""
        return {}

    @abstractmethod
    def cells(self) -> Iterator[dict[str, Any]]:
        """Every setting to compare, in order: method, options, keep and, where both are tried, positions."""

    @abstractmethod
    def make_tokenizer(self) -> PreTrainedTokenizerFast:
        """Word-level tokenizer over the closed vocabulary."""

    @abstractmethod
    def make_model(self, vocab_size: int) -> PreTrainedModel:
        """The untrained model."""

    def share(self, rng: np.random.Generator) -> Any:
        """What all lessons of a batch have in common, where anything differs between batches."""
        return None

    def fit(self, size: int, shared: Any) -> int:
        """How many lessons of this kind a batch of `size` holds, at most that many."""
        return size

    @abstractmethod
    def lesson(self, rng: np.random.Generator, shared: Any) -> Lesson:
        """One training item; shared: as `share` gives it."""

    def drill(self, rng: np.random.Generator, shared: Any) -> Lesson:
        """One training item of the tower alone, where that learns from other things than questions are asked about."""
        return self.lesson(rng, shared)

    @abstractmethod
    def tower(self, model: PreTrainedModel) -> nn.Module:
        """The vision encoder."""

    @abstractmethod
    def projector(self, model: PreTrainedModel) -> nn.Module:
        """What the decoder stage trains between the frozen part of the encoder and the language model."""

    @abstractmethod
    def see(self, model: PreTrainedModel) -> Callable[[Tensor], Seen]:
        """A compiled function of pixels [N, ...]."""

    def project(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        """What the language model reads of the visual tokens."""
        return tokens

    def between(self, shared: Any) -> tuple[str, ...]:
        """Words between one step and the next."""
        return ()

    def rope(self, model: PreTrainedModel, pixels: Tensor, shared: Any) -> tuple[Tensor, Tensor] | None:
        """cos and sin of a packed prompt with these pixels; None: every question starts right after the prefix."""
        return None

    @abstractmethod
    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Model in half precision, and its processor."""
