"""The signals that methods read: their names, shapes and meaning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Signal:
    """A signal's shape for one span, what it is, and which axis counts the tokens of the span (None: no axis does)."""

    shape: str
    what: str
    token_axis: int | None = -1
    asks: bool = False  # depends on the question in the prompt
    heard: bool = False  # comes from the attention of a decoder layer
    vision: bool = False  # comes from the vision encoder
    given: bool = False  # comes from the user alone
    per_row: bool = False  # of a given one: for each row of the batch, not for each image or video

    @property
    def axes(self) -> list[str]:
        """Names of the axes for one span: n counts its tokens, m those of the text after it."""
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
    "entropy": Signal("[n]", "entropy of the grey values of the token's pixels, in bits", vision=True),
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
    "keys": Signal("[H, n, e]", "keys of layer k-1, rotated", token_axis=-2, heard=True),
    "text_keys": Signal(
        "[H, m, e]", "keys of the text after the span, layer k-1", token_axis=None, asks=True, heard=True
    ),
    "text_embeddings": Signal("[m, d]", "input embeddings of the text after the span", token_axis=None, asks=True),
    "clip_image": Signal("[n, e]", "CLIP image embedding of each patch", token_axis=-2, given=True),
    "frame_scores": Signal("[t]", "how much each frame matters", None, asks=True, given=True),
    "voxels": Signal("[n]", "number of the place in the world that each token shows", given=True),
    "clip_text": Signal(
        "[q, e]", "CLIP embedding of each piece of the question", None, asks=True, given=True, per_row=True
    ),
}
