"""What tiny models are made of: a config, the pixels of pictures, and the ids that stand for one in a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

PAD, BOS, IMAGE, VIDEO, START, END = 0, 1, 90, 91, 92, 93
TEXT: dict[str, Any] = dict(
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=None,
)  # of a language model; head size 16
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Tiny:
    """A tiny random model of one type.

    config: makes its config: 4 decoder layers, hidden size 64, vocabulary 100, image token `IMAGE`.
    media: the pixel inputs of so many pictures, from a generator; as the processor would give them, all pictures of one
        size.
    ids: the ids of one picture in a prompt, `IMAGE` for each visual token and whatever else stands there.
    extra: more inputs that follow from `input_ids` and `attention_mask` of a left-padded batch, as a processor makes
        them.
    make: builds the model from the config; default: `AutoModelForImageTextToText`.
    one_row: whether a batch can have one row alone, with one picture.
    note: what of it is not as in real checkpoints, where that matters.
    """

    config: Callable[[], Any]
    media: Callable[[torch.Generator, int], Inputs]
    ids: Sequence[int]
    extra: Callable[[Inputs], Inputs] = field(default=lambda inputs: {})
    make: Callable[[Any], PreTrainedModel] | None = None
    one_row: bool = False
    note: str = ""

    def build(self, attention: str = "sdpa") -> PreTrainedModel:
        """The model, with weights of seed 0, in float32."""
        torch.manual_seed(0)
        config = self.config()
        if self.make is not None:
            return self.make(config).eval()
        return AutoModelForImageTextToText.from_config(config, attn_implementation=attention).float().eval()

    def inputs(self, seed: int = 0) -> Inputs:
        """A left-padded batch: a row with text, a picture and text, and one with two pictures; or the first alone."""
        made = torch.Generator().manual_seed(seed)

        def text(count: int) -> list[int]:
            return torch.randint(5, 80, (count,), generator=made).tolist()

        picture = list(self.ids)
        rows = [[BOS, *text(3), *picture, *text(5)]]
        if not self.one_row:
            rows.append([BOS, *picture, *text(2), *picture, *text(4)])
        longest = max(map(len, rows))
        batch = {
            "input_ids": torch.tensor([[PAD] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        }
        return batch | self.extra(batch) | self.media(made, 1 if self.one_row else 3)


def noise(made: torch.Generator, *shape: int) -> Tensor:
    """Pixels as a processor gives them: float32, around 0."""
    return torch.randn(*shape, generator=made)


def image_types(inputs: Inputs) -> Inputs:
    """`mm_token_type_ids` int64 [B, L]: 1 for tokens of images, 2 for those of videos."""
    ids = inputs["input_ids"]
    return {"mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}
