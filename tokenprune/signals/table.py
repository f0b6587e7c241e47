"""The signals that methods read: name, shape, meaning, where each comes from, and what has to be tapped for it.

A new signal is a row of this table and a function.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from tokenprune.core.pixels import grey_entropy
from tokenprune.signals import decoder, given
from tokenprune.signals.decoder import Provider, Tap
from tokenprune.signals.encoder import EncoderSource, encoder_signal, read_keys, read_saliency
from tokenprune.signals.inside import (
    EncoderProvider,
    before_encoder_only,
    group_attention,
    group_changes,
    group_keys,
    group_pixels,
    group_rows,
    group_sizes,
    group_states,
)
from tokenprune.signals.need import Need

BEFORE, UNROTATED, AHEAD = (
    "before",
    "unrotated",
    "ahead",
)  # of a stage at layer k: layer k-1, that without RoPE, layer k


class Tapped(NamedTuple):
    """A tap, and the attention that it listens to: `before`, `unrotated` or `ahead`."""

    where: str
    tap: Tap


@dataclass(frozen=True)
class Signal:
    """One signal.

    shape: for one span, of the axes in `AXES`; those of one name have one size in all signals of a span.
    what: its meaning.
    provide: gives it to a stage.
    token_axis: which axis counts the tokens of the span; None: no axis does.
    asks: whether it depends on the question in the prompt.
    reads_text: whether it needs text after the span.
    taps: by variant of the need, what has to be captured in the attention of a decoder layer.
    encoder: where in the vision encoder it is read.
    given: whether it comes from the user alone.
    numbers: whether it is whole numbers that name something, not measures.
    inside: gives it to a stage before or inside the vision encoder, where there is one.
    of_pixels: whether that is known before the first block.
    of_block: whether that is known behind a block alone.
    """

    shape: str
    what: str
    provide: Provider
    token_axis: int | None = -1
    asks: bool = False
    reads_text: bool = False
    taps: dict[str, Tapped] = field(default_factory=dict)
    encoder: EncoderSource | None = None
    given: bool = False
    numbers: bool = False
    inside: EncoderProvider | None = None
    of_pixels: bool = False
    of_block: bool = False

    @property
    def encoder_only(self) -> bool:
        """Whether no layer of the LLM can have it."""
        return self.provide is before_encoder_only

    @property
    def axes(self) -> list[str]:
        """Names of the axes for one span, of `AXES`."""
        return self.shape.strip("[]").split(", ")

    @property
    def ndim(self) -> int:
        """Number of axes for one span."""
        return len(self.axes)


def encoder_source(need: Need) -> EncoderSource:
    """Where in the vision encoder a signal is read that has to be."""
    found = SIGNALS[need.signal].encoder
    assert found is not None, f"{need.signal} is not read in the vision encoder"
    return found


def taps_for(needs: tuple[Need, ...], where: str) -> list[Tap]:
    """What has to be captured in one of the places that `Tapped` names, each tap once."""
    found = (SIGNALS[need.signal].taps.get(need.variant) for need in needs)
    return list(dict.fromkeys(one.tap for one in found if one is not None and one.where == where))


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
    "x": "pixel values of a group",
    "r": "width of the vision encoder times the patches of a group",
    "g": "width of a frame's descriptor",
}
LAST_ROW = {
    "": Tapped(BEFORE, decoder.tap_last_row),
    "next": Tapped(AHEAD, decoder.tap_last_row),
    "content": Tapped(UNROTATED, decoder.tap_content),
}
TEXT = {"": Tapped(BEFORE, decoder.tap_text)}
KEYS = {"": Tapped(BEFORE, decoder.tap_keys)}
SIGNALS = {
    "features": Signal("[n, d]", "projected visual embeddings, LLM width", decoder.features, token_axis=-2),
    "saliency": Signal(
        "[n]",
        "attention of the vision encoder, head mean; inside it, in the block before",
        encoder_signal,
        encoder=EncoderSource(read_saliency, {"joint": "last"}),
        inside=group_attention,
        of_block=True,
    ),
    "saliency_first": Signal(
        "[n]", "the same at the first encoder layer", encoder_signal, encoder=EncoderSource(read_saliency, "first")
    ),
    "saliency_early": Signal(
        "[n]",
        "the same in an encoder block that the method chooses",
        encoder_signal,
        encoder=EncoderSource(read_saliency, "depth"),
    ),
    "vision_features": Signal(
        "[n, c]", "encoder features before the projector", encoder_signal, token_axis=-2, encoder=EncoderSource()
    ),
    "vision_keys": Signal(
        "[n, v]",
        "encoder keys, head mean; inside the encoder those of the block before, before norms and rotation",
        encoder_signal,
        token_axis=-2,
        encoder=EncoderSource(read_keys, {"last": "last"}),
        inside=group_keys,
        of_block=True,
    ),
    "pixels": Signal(
        "[n, x]",
        "pixels of each group of patches, normalised; before the encoder",
        before_encoder_only,
        token_axis=-2,
        inside=group_pixels,
        of_pixels=True,
    ),
    "vision_states": Signal(
        "[n, c]",
        "states of the vision encoder at the stage's input, mean over the patches of a group",
        before_encoder_only,
        token_axis=-2,
        inside=group_states,
    ),
    "vision_rows": Signal(
        "[n, r]",
        "states of the vision encoder at the stage's input, of all patches of a group one after the other",
        before_encoder_only,
        token_axis=-2,
        inside=group_rows,
    ),
    "vision_changes": Signal(
        "[n]",
        "how far the encoder block before moved a group: mean over its patches of the length of the difference",
        before_encoder_only,
        inside=group_changes,
        of_block=True,
    ),
    "vision_sizes": Signal(
        "[n]",
        "how many groups each group stands for, inside the encoder",
        before_encoder_only,
        inside=group_sizes,
    ),
    "entropy": Signal(
        "[n]",
        "entropy of the grey values of the token's pixels, in bits",
        encoder_signal,
        encoder=EncoderSource(pixels=grey_entropy),
    ),
    "frame_features": Signal(
        "[t, g]", "a descriptor of each frame: the mean of its features", decoder.frame_features, token_axis=None
    ),
    "attention_row": Signal(
        "[H, n]",
        "last prompt token to visual tokens, softmax over its causal row, layer k-1",
        decoder.attention_row,
        asks=True,
        taps=LAST_ROW,
    ),
    "text_attention": Signal(
        "[H, m, n]",
        "text after the span to visual tokens, softmax over whole rows, layer k-1",
        decoder.text_attention,
        asks=True,
        reads_text=True,
        taps=TEXT,
    ),
    "text_self_attention": Signal(
        "[H, m, m]",
        "text after the span to that text, layer k-1",
        decoder.text_self_attention,
        token_axis=None,
        asks=True,
        reads_text=True,
        taps=TEXT,
    ),
    "rope_weight": Signal(
        "[m, n]",
        "what rotation alone does to the product of a text and a visual token",
        decoder.rope_weight,
        asks=True,
        reads_text=True,
    ),
    "hidden": Signal("[n, d]", "hidden states at the stage's input", decoder.hidden, token_axis=-2),
    "text_hidden": Signal(
        "[m, d]",
        "hidden states of the text after the span",
        decoder.text_hidden,
        token_axis=None,
        asks=True,
        reads_text=True,
    ),
    "keys": Signal("[K, n, e]", "keys of layer k-1, rotated", decoder.keys, token_axis=-2, taps=KEYS),
    "text_keys": Signal(
        "[K, m, e]",
        "keys of the text after the span, layer k-1",
        decoder.text_keys,
        token_axis=None,
        asks=True,
        reads_text=True,
        taps=KEYS,
    ),
    "text_embeddings": Signal(
        "[m, d]",
        "input embeddings of the text after the span",
        decoder.text_embeddings,
        token_axis=None,
        asks=True,
        reads_text=True,
    ),
    "clip_image": Signal(
        "[n, p]", "CLIP image embedding of each patch", given.given_per_token, token_axis=-2, given=True
    ),
    "frame_scores": Signal("[t]", "how much each frame matters", given.given_per_frame, None, asks=True, given=True),
    "voxels": Signal("[n]", "number of the voxel of each token", given.given_per_token, given=True, numbers=True),
    "clip_text": Signal(
        "[q, p]", "CLIP embedding of each piece of the question", given.given_per_row, None, asks=True, given=True
    ),
}
