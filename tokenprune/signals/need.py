"""What a method asks for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """A signal that a method reads; `variant` picks between ways to compute it.

    saliency: `cls` (attention of the CLS row), `received` (mean over all queries), `joint` (CLS row of the last layer
    with the heads' products summed before the softmax, PruMerge), `global` (paid by the queries that receive more than
    `threshold` times the mean, VFlowOpt). saliency_first: `cls`, `received`. saliency_early: `cls`, `received`, in the
    encoder block at `depth` of all blocks, or the nearest one that sees whole pictures. vision_keys: `` (the saliency
    layer), `last`. features: `` (of the tokens that are left), `whole` (of all that there were at first).
    attention_row: `` (layer k-1), `next` (layer k, ahead of it), `content` (layer k-1 without RoPE, softmax over the
    visual keys alone). hidden, text_hidden: ``, `normed` (after the model's final norm).
    """

    signal: str
    variant: str = ""
    threshold: float = 0.0
    depth: float = 0.0
