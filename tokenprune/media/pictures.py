"""Opens a picture for a model, or says exactly why it cannot be used."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from tokenprune.errors import BadInput
from tokenprune.media.files import MAX_PIXELS, check_limit, existing

MIN_SIDE = 8
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def load_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in a file as `as_shown` gives it. Everything here that opens pictures opens them with this.

    Raises `BadInput` for a file that is missing, empty, broken, no picture, animated, too small, or has more than
    `max_pixels`, which is found out before it is decoded.
    """
    check_limit(max_pixels)
    path = existing(path, "image")
    try:
        with warnings.catch_warnings(), _whole_files():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _check(path, image, max_pixels)
                image.load()
                shown = as_shown(image)
                return image.copy() if shown is image else shown  # a picture that knows nothing of the file
    except UnidentifiedImageError as error:
        raise BadInput(f"{path} is not an image that can be read. Give a PNG, JPEG, WebP or similar file.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow has a limit of its own
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise BadInput(f"{path} is too large: over {limit} million pixels. Scale it down first.") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} is damaged or cut short ({error}). Give a complete image file.") from error


def picture(given: str | Path | Image.Image) -> Image.Image:
    """A file by `load_image`, or an open picture `as_shown`."""
    return as_shown(given) if isinstance(given, Image.Image) else load_image(given)


def as_shown(image: Image.Image) -> Image.Image:
    """A picture as 8-bit RGB, the way up that its EXIF orientation says.

    CMYK, palette, grey, alpha (on white) and 16-bit pictures are converted. What is so already is not copied.
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in SIXTEEN_BIT:
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        clear = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(clear, mask=clear.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def _whole_files() -> Iterator[None]:
    """Pillow refuses a file that is cut short, whatever another library (lmms-eval does) has told it for everybody."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _check(path: Path, image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if math.prod(image.size) > max_pixels:
        raise BadInput(
            f"{path} is too large: {width} x {height} pixels, over the limit of {max_pixels}. Scale it down first, or "
            "give a higher max_pixels."
        )
    frames = getattr(image, "n_frames", 1)
    # Phones write MPO: a JPEG followed by depth or brightness, which is not another moment.
    if frames > 1 and image.format != "MPO":
        raise BadInput(f"{path} is animated ({frames} frames). Give a still image.")
    if min(image.size) < MIN_SIDE:
        raise BadInput(f"{path} is {width} x {height} pixels. Give at least {MIN_SIDE} pixels on each side.")
    if image.mode == "F":
        raise BadInput(f"{path} holds fractions, whose black and white are not known. Give a picture of 8 or 16 bits.")
