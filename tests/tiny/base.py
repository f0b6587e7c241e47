"""What tiny random models share: sizes, prompt parts, left-padded batches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedModel, SiglipVisionConfig

PAD, BOS, IMAGE, VIDEO, START, END, BREAK, ROW1, ROW2, WHOLE = 0, 1, 90, 91, 92, 93, 94, 85, 86, 87
TEXT: dict[str, Any] = dict(
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=None,
)
TOWER: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=24, patch_size=4
)
SIDE = 6  # patches along one side of a 24-pixel image


def clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(**TOWER)


def siglip() -> SiglipVisionConfig:
    return SiglipVisionConfig(**TOWER, vision_use_head=False)


def llama(**changes: Any) -> LlamaConfig:
    return LlamaConfig(**TEXT | changes)


@dataclass(frozen=True)
class Video:
    """A video of t frames, h x w visual tokens each where the family takes any size."""

    t: int
    h: int
    w: int


@dataclass(frozen=True)
class Picture:
    """An image; families of fixed size ignore h and w, tiling ones derive a pixel size from them."""

    h: int
    w: int


Row = list["Picture | Video | int"]


class Tiny:
    """A random model of one family. A row of a prompt is a list of pictures, videos and numbers of text tokens."""

    name: str
    placeholder: tuple[int, ...] = (IMAGE,)  # ids of visual tokens and of the separators between them
    has_video = False
    counts_padding = True  # a forward without position_ids counts padding as tokens
    fails: tuple[str, ...] = ()  # ways of running in which transformers itself fails: chunks, drafts
    moves_rows = False  # generate() counts it too, so that keys differ from those of a row alone
    counts_images = False  # of the rows before too, so that positions differ from those of a row alone
    axes = 3  # of position ids that are not one number a token
    beams_one_image = False  # transformers mixes up the images of a row when it expands a batch
    cls = False  # whether the vision encoder has a CLS token

    def build(self, attention: str = "sdpa") -> PreTrainedModel:
        torch.manual_seed(0)
        return self.make(self.config(), attention)

    def make(self, config: Any, attention: str = "sdpa") -> PreTrainedModel:
        """The model of a config that may differ from its own."""
        return self.model_class._from_config(config, attn_implementation=attention).eval()

    model_class: Any

    def config(self) -> Any:
        raise NotImplementedError

    @cached_property
    def scratch(self) -> PreTrainedModel:
        """A model of its own, to ask how many features an input gives."""
        return self.build()

    def text_model(self, model: PreTrainedModel) -> PreTrainedModel:
        return model.base_model.language_model

    def spans(self, part: Picture | Video) -> list[tuple[int, int, int]]:
        """Grids of the spans that a part of the prompt must give, in order."""
        raise NotImplementedError

    def ids(self, part: Picture | Video) -> list[int]:
        """Token ids of a part."""
        count = sum(t * h * w for t, h, w in self.spans(part))
        return [START, *[VIDEO if isinstance(part, Video) else IMAGE] * count, END]

    def media(self, rows: list[Row], made: torch.Generator) -> dict[str, Tensor]:
        """Pixel inputs of all pictures and videos."""
        raise NotImplementedError

    def extra(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Further inputs that follow from the ids, new tokens at the end included."""
        return {}

    def inputs(self, rows: list[Row], seed: int = 0, first: int = 0) -> dict[str, Tensor]:
        """Left-padded batch. Row i is the same for every batch in which it is number `first` + i."""
        ids, media = [], []
        for i, row in enumerate(rows):
            made = torch.Generator().manual_seed(1000 * seed + first + i)
            own = [BOS]
            for part in row:
                text = isinstance(part, int)
                own += torch.randint(5, 80, (part,), generator=made).tolist() if text else self.ids(part)
            ids.append(own)
            media.append(self.media([row], made))
        longest = max(map(len, ids))
        batch = {
            "input_ids": torch.tensor([[PAD] * (longest - len(row)) + row for row in ids]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids]),
        }
        names = dict.fromkeys(name for one in media for name in one)
        merged = {name: joined([one[name] for one in media if name in one]) for name in names}
        return batch | self.extra(batch) | {name: value for name, value in merged.items() if value.numel()}

    def grown(self, inputs: dict[str, Tensor], sequences: Tensor) -> dict[str, Tensor]:
        """The inputs with `sequences` in place of input_ids; what came after the prompt is text."""
        added = sequences.shape[1] - inputs["input_ids"].shape[1]
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, added), value=1)
        batch = dict(inputs) | {"input_ids": sequences, "attention_mask": mask}
        return batch | self.grown_extra(inputs, batch)

    def grown_extra(self, inputs: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.extra(batch)


def pictures(rows: list[Row]) -> list[Picture]:
    return [part for row in rows for part in row if isinstance(part, Picture)]


def videos(rows: list[Row]) -> list[Video]:
    return [part for row in rows for part in row if isinstance(part, Video)]


def frames(rows: list[Row], made: torch.Generator, size: int = 24) -> dict[str, Tensor]:
    """Videos as [videos, frames, 3, H, W]."""
    found = videos(rows)
    if not found:
        return {}
    return {"pixel_values_videos": torch.randn(len(found), found[0].t, 3, size, size, generator=made)}


def stacked(rows: list[Row], made: torch.Generator, size: int = 24) -> dict[str, Tensor]:
    """Pictures as [images, 3, H, W]."""
    count = len(pictures(rows))
    return {"pixel_values": torch.randn(count, 3, size, size, generator=made)} if count else {}


def joined(parts: list[Tensor]) -> Tensor:
    """Join along the first axis, zeros at the end of the other ones."""
    sizes = [max(n) for n in zip(*(p.shape[1:] for p in parts), strict=True)]
    whole = [torch.zeros(len(p), *sizes, dtype=p.dtype) for p in parts]
    for target, part in zip(whole, parts, strict=True):
        target[tuple(slice(n) for n in part.shape)] = part
    return torch.cat(whole)
