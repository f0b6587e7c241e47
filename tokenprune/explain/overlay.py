"""Draws what became of visual tokens on the picture (or the frames) as the model saw it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from tokenprune.engine.run import Run
from tokenprune.errors import BadInput
from tokenprune.families.base import Span

DIM = 0.2
SHORT_SIDE = 480
FRAME_SIDE = 160
COLD_TO_HOT = np.array([[34, 20, 90], [25, 95, 160], [40, 160, 130], [190, 205, 60], [255, 235, 110]], dtype=np.float32)


def seen_picture(image: Image.Image, pixel_values: Tensor, processor: Any) -> Image.Image:
    """The picture after the processor's cropping, where that can be read back from `pixel_values` [1, 3, H, W]."""
    if pixel_values.ndim != 4:
        return image
    settings = processor.image_processor
    mean, std = (np.array(v)[:, None, None] for v in (settings.image_mean, settings.image_std))
    pixels = pixel_values[0].float().cpu().numpy() * std + mean
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))


def shown_span(run: Run) -> Span:
    """The span that stands for the one image or video of the last prompt: of an image in tiles, the whole."""
    whole = [span for span in run.spans if span.part != "tile"]
    if len(whole) != 1:
        raise BadInput(f"An overlay shows one image or video, but the last prompt held {len(whole)}.")
    return whole[0]


def kept_tokens(run: Run, span: Span, stage: int = -1) -> np.ndarray:
    """bool [t, h, w]: tokens of the span that are there after a stage."""
    return np.isin(span.columns, run.kept[stage][span.row].cpu().numpy()).reshape(span.grid)


def draw_overlay(run: Run, picture: Image.Image, stage: int = -1) -> Image.Image:
    """One image's picture with the tokens dimmed that `stage` of the last prompt no longer holds.

    Of an image that the model sees in tiles and as a whole, the tokens of the whole are shown.
    """
    span = shown_span(run)
    if span.grid[0] != 1:
        raise BadInput("An overlay shows a still image, but the last prompt held a video.")
    return dim(picture, kept_tokens(run, span, stage)[0])


def dim(picture: Image.Image, kept: np.ndarray, side: int = SHORT_SIDE) -> Image.Image:
    """The picture with the tokens dark that are False in `kept` [h, w]."""
    pixels = _large(picture, side)
    mask = _spread(np.where(kept, 1.0, DIM), pixels)[..., None]
    return _image(pixels * mask + 255 * (1 - mask) * 0.12)


def heat_map(picture: Image.Image, scores: np.ndarray, side: int = SHORT_SIDE) -> Image.Image:
    """The picture under the colours of `scores` [h, w]: dark blue is the lowest, yellow the highest; where there is no
    score (NaN) the picture is grey."""
    pixels = _large(picture, side)
    known = np.isfinite(scores)
    ranks = np.zeros(scores.shape)
    if known.any():
        low, high = scores[known].min(), scores[known].max()
        ranks[known] = (scores[known] - low) / (high - low) if high > low else 0.5
    stops = np.linspace(0, 1, len(COLD_TO_HOT))
    colours = np.stack([np.interp(ranks, stops, channel) for channel in COLD_TO_HOT.T], axis=-1)
    colours[~known] = 90
    grey = pixels.mean(-1, keepdims=True)
    return _image(0.35 * grey + 0.65 * _spread(colours, pixels))


def strip(pictures: Sequence[Image.Image], columns: int = 8, gap: int = 4) -> Image.Image:
    """Pictures of one size side by side, in rows."""
    width, height = pictures[0].size
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    whole = Image.new("RGB", size, "white")
    for i, picture in enumerate(pictures):
        whole.paste(picture, (i % columns * (width + gap), i // columns * (height + gap)))
    return whole


def frames_of(pictures: Sequence[Image.Image], steps: int) -> list[Image.Image]:
    """One of the frames for each of the model's time steps, of which each may hold several."""
    return [pictures[min(i * len(pictures) // steps, len(pictures) - 1)] for i in range(steps)]


def fit(picture: Image.Image, side: int = SHORT_SIDE) -> Image.Image:
    """The picture, shrunk where its short side is above `side`."""
    short = min(picture.size)
    if short <= side:
        return picture
    return picture.resize([max(1, round(x * side / short)) for x in picture.size], Image.Resampling.BICUBIC)


def _large(picture: Image.Image, side: int) -> np.ndarray:
    """float32 [H, W, 3]; a picture whose short side is below `side` is enlarged by a whole number."""
    scale = max(1, side // min(picture.size))
    size = (picture.width * scale, picture.height * scale)
    return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.NEAREST), dtype=np.float32)


def _spread(values: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """One value of `values` [h, w, ...] for each pixel."""
    h, w = values.shape[:2]
    rows = np.arange(pixels.shape[0]) * h // pixels.shape[0]
    columns = np.arange(pixels.shape[1]) * w // pixels.shape[1]
    return values[rows[:, None], columns[None]]


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
