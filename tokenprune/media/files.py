"""Files that people name: there, whole, no URL, and not too large."""

from __future__ import annotations

import re
from pathlib import Path

from tokenprune.errors import BadInput

MAX_PIXELS = 2**26  # of one picture, or of all frames of a clip together: 67 million, 192 MiB as RGB
_URL = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+):/+")


def existing(path: str | Path, what: str) -> Path:
    """The path of a file with something in it, else `BadInput`; what: image or video, for the message."""
    url = _URL.match(str(path))
    path = Path(path)
    a = "an" if what == "image" else "a"
    if not path.exists():
        if url:  # a Path has lost a slash
            address = _URL.sub(r"\1://", str(path), count=1)
            raise BadInput(f"{address} is a URL, and URLs are not fetched. Download it and give the file.")
        raise BadInput(f"There is no {what} at {path}.")
    if path.is_dir():
        raise BadInput(f"{path} is a folder. Give one {what} file.")
    if not path.is_file():
        raise BadInput(f"{path} is no regular file. Give {a} {what} file.")
    if path.stat().st_size == 0:
        raise BadInput(f"{path} is empty (0 bytes). Give {a} {what} file.")
    return path


def check_limit(max_pixels: int) -> None:
    """Refuse what is no number of pixels."""
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 1:
        raise BadInput(f"max_pixels={max_pixels!r} must be a whole number from 1 on.")
