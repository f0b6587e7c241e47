"""Tells a picture from a video by what is in the file, whatever its name says."""

from __future__ import annotations

import io
import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from tokenprune.errors import BadInput

Kind = Literal["image", "video"]
HEAD = 2048  # bytes: four packets of a transport stream and more
PROBED = 2**20  # bytes that FFmpeg judges a rarer format by
TS_PACKETS = ((0, 188), (4, 192), (0, 204))  # first sync byte and distance: broadcast, Blu-ray (.m2ts), with parity

# First bytes of the containers and elementary streams that hold videos. ISO files (MP4, MOV, 3GP): by their boxes.
VIDEOS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        rb"\x1aE\xdf\xa3",  # Matroska, WebM
        rb"RIFF....(AVI |AVIX)",
        rb"OggS",
        rb"FLV\x01",
        rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF: WMV
        rb"\x00\x00\x01[\xb0\xb3\xb5\xba]",  # MPEG program and elementary streams
        rb"\x00\x00\x00?\x01[\x06\x09\x27\x40\x42\x46\x47\x67]",  # H.264 and HEVC without a container
        rb"\x06\x0e\x2b\x34\x02\x05\x01\x01",  # MXF
        rb"YUV4MPEG2|DKIF|nut/multimedia|\.RMF|\x1f\x07\x00",
    )
)
PICTURES = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|BM....\x00\x00\x00\x00|II\*\x00|MM\x00\*|\xff\x4f\xff\x51|8BPS", re.DOTALL
)
ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
STILL_BRANDS = {  # of ISO files that hold a picture (ISO/IEC 23008-12 and AVIF), by the name people know
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"miaf"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
# Formats whose further frames are moments, not pages or sizes; and those of them whose moments FFmpeg does not decode.
MOVING = ("GIF", "PNG", "WEBP", "AVIF", "FLI")
STUCK = ("WEBP", "AVIF")


def kind_of(path: str | Path) -> Kind:
    """Whether a file holds a picture or a video; an animation of several frames is a video.

    Raises `BadInput` for a file that is missing, empty or neither, and for a format that nothing here can read.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"There is no file at {path}.")
    if path.is_dir():
        raise BadInput(f"{path} is a folder. Give one picture or video.")
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        raise BadInput(f"{path} is empty (0 bytes). Give a picture or a video.")
    if any(pattern.match(head) for pattern in VIDEOS) or _is_transport_stream(head):
        return "video"
    still = _still_brand(head)
    if head[4:8] in ISO_BOXES and still is None:
        return "video"
    found = _by_pillow(path)
    if found is None and still is not None:
        raise BadInput(f"{path} is {still} picture, which cannot be read here. Save it as JPEG or PNG.")
    if found is None and PICTURES.match(head):
        found = "image"  # a damaged one: who loads it says so
    if found is None and _has_streams(path):
        found = "video"
    if found is None:
        raise BadInput(f"{path} is neither a picture nor a video that can be read. Give a PNG, JPEG, MP4 or similar.")
    return found


def _is_transport_stream(head: bytes) -> bool:
    """Whether every packet begins with the sync byte; five of them by chance do not happen."""
    packets = (head[first::distance] for first, distance in TS_PACKETS)
    return any(len(own) >= 5 and set(own) == {0x47} for own in packets)


def _still_brand(head: bytes) -> str | None:
    """The picture format of an ISO file with its article, by its major brand; None where it holds something else."""
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    name = STILL_BRANDS.get(brand)
    if name == "HEIC" and b"avif" in head[16 : int.from_bytes(head[:4], "big")]:
        name = "AVIF"
    return name and f"{'an' if name == 'AVIF' else 'a'} {name}"


def _by_pillow(path: Path) -> Kind | None:
    """What Pillow takes the file for, by its header; None where it knows no such format."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                name, moves = image.format, image.format in MOVING and getattr(image, "is_animated", False)
    except Image.DecompressionBombError:
        return "image"  # a huge one: who loads it says so
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError):
        return None
    if moves and name in STUCK:
        raise BadInput(f"{path} is an animated {name}, which cannot be read here. Save it as GIF or MP4.")
    return "video" if moves else "image"


def _has_streams(path: Path) -> bool:
    """Whether PyAV finds sound or moving pictures in a file of a rarer format."""
    if not find_spec("av"):
        return False
    import av

    with path.open("rb") as file:
        start = io.BytesIO(file.read(PROBED))  # nameless: an ending would sway FFmpeg
    alone = {"protocol_whitelist": "none"}  # a playlist or session description must not make it open what it names
    try:
        with av.open(start, container_options=alone) as container:
            kinds = {stream.type for stream in container.streams}
            return not container.format.name.endswith("_pipe") and bool(kinds & {"video", "audio"})
    except (av.FFmpegError, ValueError):
        return False
