"""What the engine asks of a model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenprune.errors import MissingSignal, Unsupported

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_STD = (0.229, 0.224, 0.225)


def without(reason: str, *signals: str) -> dict[str, str]:
    """The same reason for several signals, for `Family.missing`."""
    return dict.fromkeys(signals, reason)


NO_CLASS_TOKEN = without(
    "its vision encoder has no CLS token. Use source='received'.",
    "saliency:cls",
    "saliency:joint",
    "saliency_first:cls",
    "saliency_early:cls",
)
THREE_AXES = {"rope_weight": "it rotates by three axes of position ids."}
ENCODER_SIGNALS = ("saliency", "saliency_first", "saliency_early", "vision_keys", "vision_features", "entropy")


@dataclass(frozen=True)
class Part:
    """A rectangle of visual tokens as the encoder hands it over: a whole image or video, a base image, a tile.

    grid: (t, h, w). The encoder may add separators, which have placeholders too but are no visual tokens: one after
    each row (`row_end`), one before each frame (`frame_start`), so many after the whole part (`end`).
    """

    grid: tuple[int, int, int]
    name: str = "image"  # image, base, tile or video
    row_end: bool = False
    frame_start: bool = False
    end: int = 0

    @property
    def length(self) -> int:
        """Placeholders of this part, separators included."""
        t, h, w = self.grid
        return t * h * (w + self.row_end) + t * self.frame_start + self.end


class Separator(NamedTuple):
    """A token that goes once tokens first ... last - 1 of its span have all gone; never pruned by itself."""

    column: int
    first: int
    last: int


@dataclass(frozen=True)
class Span:
    """The visual tokens of one image, tile or video.

    row: row of the batch. columns: ascending prompt columns, in the order of the grid. grid: (t, h, w). media: image or
    video. part: image, base, tile or video. item: which image (or video) of the prompt it belongs to, in reading order.
    """

    row: int
    columns: tuple[int, ...]
    grid: tuple[int, int, int]
    media: str = "image"
    part: str = "image"
    item: int = 0
    separators: tuple[Separator, ...] = ()

    @property
    def count(self) -> int:
        return len(self.columns)


@dataclass
class Encoded:
    """One call of a feature getter. arguments: by name. pieces: rows of each tensor that it gives to the prompt, or of
    each entry of its one tensor [N, n, d], once it has run; a tensor [n, d] is one piece, whatever it holds."""

    media: str
    arguments: dict[str, Any]
    pieces: tuple[int, ...] = ()

    @property
    def features(self) -> int:
        """Rows that it gives to the prompt, of all items."""
        return sum(self.pieces)

    @property
    def pixels(self) -> Tensor:
        """The pixel input, whose argument has had several names."""
        names = ("pixel_values", "pixel_values_videos", "pixel_values_images")
        return next(self.arguments[n] for n in names if self.arguments.get(n) is not None)


@dataclass(frozen=True)
class EncoderBlocks:
    """The vision encoder of a medium, as far as stages before and inside it need it.

    blocks: its layers. last: the number of the one whose output becomes the features. exits: modules behind the blocks
    whose output has one row for each group, in the order of the rows; without any, rows that are gone come back at the
    output of block `last`. embed: what makes a row of each patch, where patches come as rows of any number.
    """

    blocks: nn.ModuleList
    last: int
    exits: tuple[nn.Module, ...] = ()
    embed: nn.Module | None = None


@dataclass(frozen=True)
class Groups:
    """How the rows of an encoder's blocks are laid out in one call.

    members: int64 [G, u], for each group (the patches that become one token of the LLM) the rows of its patches,
        counted over all sequences of the call; pictures in reading order, groups in raster order, patches too.
    grids: (rows, columns) in groups of each segment, which is what attends to itself alone: a picture, a tile, a frame.
    frames: how many segments each picture or video has; only those of a video are frames that follow each other.
    """

    members: Tensor
    grids: list[tuple[int, int]]
    frames: list[int]


class Family(ABC):
    """One family of models. Stateless: everything is read from the model that is passed in."""

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    getters: ClassVar[dict[str, str]] = {"image": "get_image_features"}  # media -> method of the base model
    missing: ClassVar[dict[str, str]] = {}  # "signal" or "signal:variant" -> why this family cannot give it
    no_stream: ClassVar[str] = ""  # why a stream of frames cannot follow it, as what its name does
    conditions: ClassVar[dict[str, str]] = {}  # the same for signals that only some of its models give
    pixel_std: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)  # what its processors divide brightness by
    projects: ClassVar[bool] = False  # whether its projector takes the features of tokens one by one
    blocks_ignore_window: ClassVar[bool] = False  # whether `blocks` reach beyond a sliding window
    block_layers: ClassVar[str | None] = None  # the one type of layers that has `blocks`; None: all have
    knows_grids: ClassVar[bool] = True  # whether it tells where the tokens of a picture lie
    trusted: ClassVar[bool] = True  # whether tests hold it; else the first prompt of each run is compared

    @property
    def media(self) -> tuple[str, ...]:
        """What its prompts can hold: image, video."""
        return tuple(self.getters)

    def serves(self, model: PreTrainedModel) -> bool:
        """Whether a model belongs to this family."""
        return model.config.model_type in self.model_types

    def check(self, model: PreTrainedModel) -> None:  # noqa: B027
        """Raise `Unsupported` for a model of this family that cannot be pruned."""

    def check_prompt(self, arguments: dict[str, Any]) -> None:  # noqa: B027
        """Raise `Unsupported` for images or videos that cannot be pruned; arguments: of the base model's forward."""

    def base(self, model: PreTrainedModel) -> Any:
        """The module whose forward puts visual features into the prompt."""
        return model.base_model

    def language_model(self, model: PreTrainedModel) -> Any:
        """The text model, with `layers`, `rotary_emb` and `config`."""
        return self.base(model).language_model

    def placeholders(self, model: PreTrainedModel) -> dict[str, int]:
        """The token id that stands for a visual token in `input_ids`, for each medium: image, video."""
        return {media: getattr(model.config, f"{media}_token_id") for media in self.getters}

    def media_of(self, encoded: list[str], present: list[str]) -> list[str]:
        """Which medium each getter call served, where the getter's own name (`encoded`) does not tell.

        present: the media that have placeholders in the prompt.
        """
        return encoded

    @abstractmethod
    def items(self, model: PreTrainedModel, encoded: Encoded) -> list[list[Part]]:
        """The parts of each image or video that a getter encoded, in the order of their features."""

    def finish(self, model: PreTrainedModel, spans: list[Span], input_ids: Tensor) -> list[Span]:
        """Last word on the spans of a prompt, for what only its text tokens tell (int64 [B, L])."""
        return spans

    def blocks(self, model: PreTrainedModel, arguments: dict[str, Any], first: bool) -> Tensor | None:
        """int64 [B, L]: tokens of equal number (0 or more) see each other in both directions; -1 for causal ones.

        arguments: of the base model's forward. first: whether the cache holds nothing yet. None: all causal.
        """
        return None

    def lacks(self, signal: str, variant: str, model: PreTrainedModel | None = None) -> str | None:
        """Why this model, or without one every model of this family, cannot give a signal; None where it can."""
        return self.missing.get(signal, self.missing.get(f"{signal}:{variant}"))

    def encoder(self, model: PreTrainedModel, media: str) -> tuple[nn.ModuleList, int]:
        """The layers of the vision encoder, and the number of the one whose output becomes the features: attention
        signals are read in it."""
        raise MissingSignal(f"{self.name} gives no signals of its vision encoder.")

    def block_at(self, model: PreTrainedModel, media: str, depth: float) -> int:
        """The encoder block at a share `depth` of all blocks, or the nearest that sees whole pictures."""
        blocks, _ = self.encoder(model, media)
        return min(round(depth * len(blocks)), len(blocks) - 1)

    def pool_patches(self, model: PreTrainedModel, encoded: Encoded, calls: list[Tensor]) -> list[list[Tensor]]:
        """Values of encoder patches as values of tokens: float32 [n, c] for each item and part of `items`.

        calls: float32 [N, patches, c], what each call of an encoder layer gave for every patch, CLS token included.
        """
        raise MissingSignal(f"{self.name} gives no signals of its vision encoder.")

    def whole_encoder(self, model: PreTrainedModel | None, media: str) -> str | None:
        """Why nothing can be pruned before or inside the vision encoder for a medium; None where it can."""
        return "tokenprune does not know how the rows of its vision encoder become tokens."

    def encoder_blocks(self, model: PreTrainedModel, media: str) -> EncoderBlocks:
        """The vision encoder for a medium, where `whole_encoder` has no reason against it."""
        raise NotImplementedError

    def groups(self, model: PreTrainedModel, encoded: Encoded, rows: tuple[int, int]) -> Groups:
        """The layout of a call whose blocks see `rows`: (sequences, rows of each)."""
        raise NotImplementedError

    def group_pixels(self, model: PreTrainedModel, encoded: Encoded, groups: Groups) -> Tensor:
        """float [G, values]: the pixels of each group, as the processor normalised them."""
        raise NotImplementedError

    def project(self, model: PreTrainedModel, features: Tensor) -> Tensor:
        """Encoder features [k, c] of single tokens as rows [k, d] for the LLM; where `projects`."""
        raise MissingSignal(f"{self.name} does not project its features one by one.")

    def patches(self, model: PreTrainedModel, encoded: Encoded) -> Tensor:
        """Pixels of each patch, in the order that `pool_patches` takes: float [N, patches, 3, pixels]."""
        raise MissingSignal(f"{self.name} gives no pixels of its patches.")


def feature_layer(layers: nn.ModuleList, index: int | list[int]) -> int:
    """Number of the encoder layer whose output is `hidden_states[index]`; the deepest one of several."""
    places = [i if i >= 0 else i + len(layers) + 1 for i in (index if isinstance(index, (list, tuple)) else [index])]
    if max(places) == 0:
        raise Unsupported("This model uses the patch embeddings as features, so no encoder layer gives a saliency.")
    return max(places) - 1


def grid_groups(height: int, width: int, unit: int) -> Tensor:
    """int64 [G, unit**2]: which of height x width patches in raster order make up each group of unit x unit; patches at
    the lower and right edge that fill no group belong to none."""
    cells = torch.arange(height * width).view(height, width)[: height - height % unit, : width - width % unit]
    cells = cells.unflatten(0, (-1, unit)).unflatten(2, (-1, unit))
    return cells.transpose(1, 2).reshape(-1, unit * unit)


def attention_of(layer: nn.Module) -> nn.Module:
    """The attention module of an encoder layer, under any of its names."""
    return next(getattr(layer, name) for name in ("self_attn", "attention", "attn") if hasattr(layer, name))


def mlp_of(layer: nn.Module) -> nn.Module:
    """The MLP of an encoder layer, under any of its names."""
    return next(getattr(layer, name) for name in ("mlp", "feed_forward", "ffn") if hasattr(layer, name))


def key_projection(attention: nn.Module) -> nn.Module:
    """The linear map of an encoder's attention that makes keys: of them alone, or of queries, keys and values."""
    return next(getattr(attention, name) for name in ("k_proj", "qkv") if hasattr(attention, name))


def head_mean(attention: Any, projected: Tensor) -> Tensor:
    """Keys [..., e], mean over heads, from the output of `key_projection`."""
    if hasattr(attention, "qkv"):
        queries = attention.num_heads * attention.head_dim  # keys and values may have fewer heads
        projected = projected[..., queries:].chunk(2, dim=-1)[0]
    return projected.unflatten(-1, (-1, attention.head_dim)).mean(-2)


def encoder_layers(tower: nn.Module) -> nn.ModuleList:
    """The layers of a CLIP-like vision encoder, wherever the transformers version keeps them."""
    return next(
        m for name, m in tower.named_modules() if name.split(".")[-2:] in (["encoder", "layers"], ["encoder", "layer"])
    )
