"""Draws which tokens a run kept: the picture as the model saw it, dropped tokens dimmed."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from tokenprune.attach.run import Run
from tokenprune.errors import BadInput

DIM = 0.2
SHORT_SIDE = 480


def seen_picture(image: Image.Image, pixel_values: Tensor, processor: object) -> Image.Image:
    """The picture after the processor's cropping, where that can be read back from `pixel_values` [1, 3, H, W]."""
    if pixel_values.ndim != 4:
        return image
    settings = processor.image_processor
    mean, std = (np.array(v)[:, None, None] for v in (settings.image_mean, settings.image_std))
    pixels = pixel_values[0].float().numpy() * std + mean
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))


def draw_overlay(run: Run, picture: Image.Image, stage: int = -1) -> Image.Image:
    """One image's picture with the tokens dimmed that `stage` of the last prompt no longer holds.

    Of an image that the model sees in tiles and as a whole, the tokens of the whole are shown.
    """
    whole = [span for span in run.spans if span.part != "tile"]
    if len(whole) != 1:
        raise BadInput(f"An overlay shows one image, but the last prompt held {len(whole)}.")
    span = whole[0]
    t, h, w = span.grid
    if t != 1:
        raise BadInput("An overlay shows a still image, but the last prompt held a video.")
    shade = np.full(h * w, DIM)
    shade[np.isin(span.columns, run.kept[stage][span.row].numpy())] = 1.0
    scale = max(1, SHORT_SIDE // min(picture.size))
    large = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    rows = np.arange(large.height) * h // large.height
    columns = np.arange(large.width) * w // large.width
    mask = shade.reshape(h, w)[rows[:, None], columns[None]]
    pixels = np.asarray(large, dtype=np.float32) * mask[..., None] + 255 * (1 - mask[..., None]) * 0.12
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
