"""Opens a picture for a model, or says exactly why it cannot be used."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from tokenprune.errors import BadInput

MIN_SIDE = 8
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def load_image(path: str | Path) -> Image.Image:
    """The picture as 8-bit RGB. CMYK, palette, grey, alpha (on white) and 16-bit pictures are converted.

    Raises `BadInput` for a file that is missing, empty, broken, no picture, animated, too small or too large.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"There is no image at {path}.")
    if path.is_dir():
        raise BadInput(f"{path} is a folder. Give one image file.")
    if path.stat().st_size == 0:
        raise BadInput(f"{path} is empty (0 bytes). Give an image file.")
    try:
        with warnings.catch_warnings(), _whole_files():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _check(path, image)
                image.load()
                return _to_rgb(image)
    except UnidentifiedImageError as error:
        raise BadInput(f"{path} is not an image that can be read. Give a PNG, JPEG, WebP or similar file.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS // 1_000_000
        raise BadInput(f"{path} is too large: over {limit} million pixels. Scale it down first.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} is damaged or cut short ({error}). Give a complete image file.") from error


@contextmanager
def _whole_files() -> Iterator[None]:
    """Pillow refuses a file that is cut short, whatever another library (lmms-eval does) has told it for everybody."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _check(path: Path, image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise BadInput(f"{path} is animated ({frames} frames). Give a still image.")
    if min(image.size) < MIN_SIDE:
        width, height = image.size
        raise BadInput(f"{path} is {width} x {height} pixels. Give at least {MIN_SIDE} pixels on each side.")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BIT:
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
