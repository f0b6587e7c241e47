"""What the engine asks of a model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenprune.errors import Unsupported


@dataclass(frozen=True)
class Placeholders:
    """A run of placeholder tokens in the prompt, before it is cut into spans."""

    row: int
    start: int
    length: int
    token: int


@dataclass(frozen=True)
class Span:
    """The visual tokens of one image or video: columns start ... start + count - 1 of row `row` of the prompt."""

    row: int
    start: int
    grid: tuple[int, int, int]
    media: str = "image"  # or video

    @property
    def count(self) -> int:
        t, h, w = self.grid
        return t * h * w


class Family(ABC):
    """One family of models. Stateless: everything is read from the model that is passed in."""

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]

    def check(self, model: PreTrainedModel) -> None:
        """Raise `Unsupported` for a model of this family that cannot be pruned."""
        layer_types = getattr(self.language_model(model).config, "layer_types", None) or []
        odd = sorted(set(layer_types) - {"full_attention"})
        if odd:
            raise Unsupported(
                f"This model has {', '.join(odd)} layers, which cannot be pruned yet. Use full attention."
            )

    def base(self, model: PreTrainedModel) -> PreTrainedModel:
        """The module whose forward puts visual features into the prompt."""
        return model.base_model

    def language_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The text model, with `layers`, `rotary_emb` and `config`."""
        return self.base(model).language_model

    @abstractmethod
    def placeholders(self, model: PreTrainedModel) -> dict[str, int]:
        """The token id that stands for a visual token in `input_ids`, for each medium: image, video."""

    @abstractmethod
    def spans(self, model: PreTrainedModel, runs: Sequence[Placeholders], positions: Tensor) -> list[Span]:
        """Cut the runs of placeholders into spans with true grids.

        positions: int64 [axes, B, L], the position ids that the text model will use.
        """

    @abstractmethod
    def tower(self, model: PreTrainedModel) -> nn.Module:
        """The vision encoder."""

    @abstractmethod
    def saliency_module(self, model: PreTrainedModel) -> nn.Module:
        """The attention module of the vision encoder that the `saliency` signal is read from."""

    @abstractmethod
    def saliency(
        self, model: PreTrainedModel, calls: list[Tensor], variant: str, tower_inputs: dict[str, Any]
    ) -> list[Tensor]:
        """Turn what the attention calls of one encoder pass gave into one [n] tensor per image.

        calls: for each attention call [N, patches] (attention received, or the first query's row, head mean).
        tower_inputs: arguments of the encoder by name.
        """
