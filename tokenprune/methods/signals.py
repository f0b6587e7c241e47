"""The signals that methods read: their names, shapes and meaning."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from tokenprune.errors import BadInput

AXES = {
    "S": "spans",
    "n": "visual tokens",
    "m": "tokens of the text after the span",
    "q": "pieces of the question",
    "t": "frames",
    "H": "heads",
    "K": "heads of the keys",
    "d": "width of the language model",
    "e": "width of a key",
    "c": "width of the vision encoder",
    "v": "width of a key of the vision encoder",
    "p": "width of a CLIP embedding",
    "g": "width of a frame's descriptor",
}


@dataclass(frozen=True)
class Signal:
    """A signal's shape for one span, what it is, and which axis counts the tokens of the span (None: no axis does).

    Axes of one name (`AXES`) have one size in all signals of a span: `common_sizes` checks it.
    """

    shape: str
    what: str
    token_axis: int | None = -1
    asks: bool = False  # depends on the question in the prompt
    heard: bool = False  # comes from the attention of a decoder layer
    vision: bool = False  # comes from the vision encoder
    given: bool = False  # comes from the user alone
    per_row: bool = False  # of a given one: for each row of the batch, not for each image or video
    numbers: bool = False  # whole numbers that name something, not measures

    @property
    def axes(self) -> list[str]:
        """Names of the axes for one span, of `AXES`."""
        return self.shape.strip("[]").split(", ")

    @property
    def ndim(self) -> int:
        """Number of axes for one span."""
        return len(self.axes)


@dataclass(frozen=True)
class Need:
    """A signal that a method reads; `variant` picks between ways to compute it.

    saliency: `cls` (attention of the CLS row), `received` (mean over all queries), `joint` (CLS row of the last layer
    with the heads' products summed before the softmax, PruMerge), `global@T` (paid by the queries that receive more
    than T times the mean, VFlowOpt). saliency_first: `cls`, `received`. vision_keys: `` (the saliency layer), `last`.
    features: `` (of the tokens that are left), `whole` (of all that there were at first).
    attention_row: `` (layer k-1), `next` (layer k, ahead of it), `content` (layer k-1 without RoPE, softmax over the
    visual keys alone). hidden, text_hidden: ``, `normed` (after the model's final norm).
    """

    signal: str
    variant: str = ""


SIGNALS = {
    "features": Signal("[n, d]", "projected visual embeddings, LLM width", token_axis=-2),
    "saliency": Signal("[n]", "attention of the vision encoder, head mean", vision=True),
    "saliency_first": Signal("[n]", "the same at the first encoder layer", vision=True),
    "vision_features": Signal("[n, c]", "encoder features before the projector", token_axis=-2, vision=True),
    "vision_keys": Signal("[n, e]", "encoder keys, head mean", token_axis=-2, vision=True),
    "entropy": Signal("[n]", "entropy of the grey values of the token's pixels, in nats", vision=True),
    "frame_features": Signal("[t, g]", "a descriptor of each frame: the mean of its features", token_axis=None),
    "attention_row": Signal(
        "[H, n]", "last prompt token to visual tokens, softmax over its causal row, layer k-1", asks=True, heard=True
    ),
    "text_attention": Signal(
        "[H, m, n]", "text after the span to visual tokens, softmax over whole rows, layer k-1", asks=True, heard=True
    ),
    "text_self_attention": Signal(
        "[H, m, m]", "text after the span to that text, layer k-1", token_axis=None, asks=True, heard=True
    ),
    "rope_weight": Signal("[m, n]", "what rotation alone does to the product of a text and a visual token", asks=True),
    "hidden": Signal("[n, d]", "hidden states at the stage's input", token_axis=-2),
    "text_hidden": Signal("[m, d]", "hidden states of the text after the span", token_axis=None, asks=True),
    "keys": Signal("[K, n, e]", "keys of layer k-1, rotated", token_axis=-2, heard=True),
    "text_keys": Signal(
        "[K, m, e]", "keys of the text after the span, layer k-1", token_axis=None, asks=True, heard=True
    ),
    "text_embeddings": Signal("[m, d]", "input embeddings of the text after the span", token_axis=None, asks=True),
    "clip_image": Signal("[n, p]", "CLIP image embedding of each patch", token_axis=-2, given=True),
    "frame_scores": Signal("[t]", "how much each frame matters", None, asks=True, given=True),
    "voxels": Signal("[n]", "number of the place in the world that each token shows", given=True, numbers=True),
    "clip_text": Signal(
        "[q, p]", "CLIP embedding of each piece of the question", None, asks=True, given=True, per_row=True
    ),
}


def read_signal(name: str, value: Any) -> Tensor:
    """What a user brings, as a tensor of floating point numbers within float32, or of whole ones where they number
    something; else `BadInput`."""
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"{name} is not a tensor, and none can be made of it: {error}") from None
    if SIGNALS[name].numbers:
        if found.is_floating_point() or found.is_complex():
            raise BadInput(f"{name} must be whole numbers, not {found.dtype}.")
        return found.long()
    if found.is_complex():
        raise BadInput(f"{name} must be real numbers, not {found.dtype}.")
    if not found.float().isfinite().all():
        raise BadInput(f"{name} holds NaN or infinite values, or some that float32 cannot hold.")
    return found if found.is_floating_point() else found.float()


def one_dtype(signals: dict[str, Tensor]) -> dict[str, Tensor]:
    """These signals with all that measure something in the widest of their dtypes, so that they can be multiplied."""
    measures = [x.dtype for x in signals.values() if x.is_floating_point()]
    widest = reduce(torch.promote_types, measures) if measures else None
    return {name: x.to(widest) if x.is_floating_point() else x for name, x in signals.items()}


def common_sizes(signals: Iterable[tuple[str, Tensor]], stacked: bool, apart: Collection[str] = ()) -> dict[str, int]:
    """The size of every named axis of these signals. stacked: whether all have [S] in front. apart: axes whose sizes
    may differ.

    Raises `BadInput` where a signal has other axes than the table says or one of size 0, and where two signals
    disagree: then both are named, with their shapes.
    """
    found: dict[str, tuple[int, str]] = {}
    for name, value in signals:
        axes = ["S"] * stacked + SIGNALS[name].axes
        own, wanted = f"{name} {list(value.shape)}", f"[{', '.join(axes)}]"
        if value.ndim != len(axes):
            more = (
                "; [S] stands in front of all signals or of none" if stacked else ", or that of all with [S] in front"
            )
            raise BadInput(f"{own} does not fit: expected {wanted}{more}.")
        for axis, size in zip(axes, value.shape, strict=True):
            if size == 0:
                raise BadInput(f"{own} is empty: it has no {AXES[axis]} ({axis} = 0 of {wanted}).")
            first, other = found.setdefault(axis, (size, own))
            if first != size and axis not in apart:
                raise BadInput(
                    f"{other} and {own} disagree on {axis}, the {AXES[axis]}: {first} and {size}. Expected "
                    f"{SIGNALS[other.split()[0]].shape} and {SIGNALS[name].shape}."
                )
    return {axis: size for axis, (size, _) in found.items()}
