"""What providers of signals get to see: of a stage, and of the attention of a layer while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from tokenprune.signals.need import Need

# Queries [N, H, q, e], keys [N, H', k, e], scaling, mask, softcap (0: none).
Listener = Callable[[Tensor, Tensor, float, Any, float], None]


class Rows(Protocol):
    """The rows of the sequence as they are now; B rows of the batch, K tokens of each."""

    @property
    def spans(self) -> Sequence[Any]:
        """Of each image or video: count, grid, columns."""

    @property
    def column(self) -> Tensor:
        """int64 [B, K]: the prompt column of each row."""

    @property
    def batch(self) -> int:
        """B."""

    @property
    def query_rows(self) -> Tensor:
        """int64 [B]: the row of the last prompt token."""

    @property
    def text_rows(self) -> list[Tensor]:
        """For each row of the batch int64 [m]: its text after its first image, up to the last prompt token."""


@dataclass
class Selectable:
    """What a method selects from at once: one span, or all spans of a picture.

    spans: their numbers, in order.
    row: of the batch.
    rows: int64 [n], rows of the sequence that its tokens occupy now.
    tokens: int64 [n], which of its tokens they are.
    total: how many there were before any stage.
    after: int64 [m], rows of the text after it; empty where the method reads none.
    """

    spans: list[int]
    row: int
    rows: Tensor
    tokens: Tensor
    total: int
    after: Tensor


@dataclass
class Reading:
    """Everything that a stage can read.

    rows: the rows as they are.
    hidden: [B, K, d], hidden states at the stage's input.
    embeds: [B, L, d], input embeddings of the prompt, visual features among them.
    vision: for each need of the vision encoder, for each span [n, ...].
    given: by the user, for each span or for each row of the batch.
    captured: what taps left since the last stage, by name.
    normalize: the model's final norm.
    rope: gives cos and sin [B, K, e] of the rows.
    """

    rows: Rows
    hidden: Tensor
    embeds: Tensor
    vision: dict[Need, list[Tensor]]
    given: dict[str, list[Tensor]]
    captured: dict[str, Tensor]
    normalize: Callable[[Tensor], Tensor]
    rope: Callable[[], tuple[Tensor, Tensor]]


@dataclass
class Attention:
    """The attention of one decoder layer, as a tap finds it.

    rows: the rows as they are.
    keys: [B, H', K, e] of the rows of this pass.
    paid: what rows int64 [B, m] pay to the rows of this pass, float32 [B, H, m, K], softmax over whole rows.
    products: the same before any mask and softmax, scaled and capped.
    captured: where taps leave what they found, by name.
    """

    rows: Rows
    keys: Tensor
    paid: Callable[[Tensor], Tensor]
    products: Callable[[Tensor], Tensor]
    captured: dict[str, Tensor]
