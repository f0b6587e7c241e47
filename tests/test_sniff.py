"""Pictures and videos are told apart by what is in them: every file here has a name that says nothing."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pytest
from PIL import Image

from tokenprune import BadInput
from tokenprune.media.sniff import kind_of

FRAMES = [Image.fromarray(np.full((32, 48, 3), 30 * i, np.uint8)) for i in range(4)]
CONTAINERS = {
    **dict.fromkeys(("mp4", "mov", "3gp", "avi", "matroska", "mpegts", "nut"), "mpeg4"),
    **{"flv": "flv", "asf": "wmv2", "mpeg": "mpeg1video", "mpeg1video": "mpeg1video", "mpeg2video": "mpeg2video"},
    **{
        "m4v": "mpeg4",
        "h264": "libx264",
        "webm": "vp8",
        "ivf": "vp8",
        "mxf": "mpeg2video",
        "gif": "gif",
        "apng": "apng",
    },
}


@pytest.fixture
def told(tmp_path):
    def kind(content):
        (tmp_path / "file").write_bytes(content)
        return kind_of(tmp_path / "file")

    return kind


def written(container, codec):
    stored = io.BytesIO()
    with av.open(stored, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25, width=352, height=288)
        stream.pix_fmt = {"gif": "rgb8", "apng": "rgb24"}.get(codec, "yuv420p")
        stream.codec_context.thread_count = 1  # two threads of VP8 wait for each other for ever, once in a while
        made = np.random.default_rng(0)
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(made.integers(0, 255, (288, 352, 3), dtype=np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return stored.getvalue()


def saved(kind, count=1):
    stored = io.BytesIO()
    FRAMES[0].save(stored, kind, **(dict(save_all=True, append_images=FRAMES[1:count]) if count > 1 else {}))
    return stored.getvalue()


@pytest.mark.parametrize("container", CONTAINERS)
def test_videos(told, container):
    content = written(container, CONTAINERS[container])
    assert told(content) == "video"
    if container == "mpegts":  # as cameras write it: .m2ts, four bytes of time before each packet
        assert told(b"".join(b"\0\0\0\0" + content[i : i + 188] for i in range(0, len(content), 188))) == "video"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "ICO"])
def test_pictures(told, kind):
    assert told(saved(kind)) == "image"


def test_several_frames(told):
    """Animations are videos, or refused where nothing reads them; pages and second pictures are no moments."""
    assert {kind: told(saved(kind, 4)) for kind in ("GIF", "PNG")} == {"GIF": "video", "PNG": "video"}
    assert {kind: told(saved(kind, 4)) for kind in ("TIFF", "MPO")} == {"TIFF": "image", "MPO": "image"}
    for kind in ("WEBP", "AVIF"):
        with pytest.raises(BadInput, match=f"is an animated {kind}, which cannot be read here"):
            told(saved(kind, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"words and words", "neither a picture nor a video"),
        (b"%PDF-1.4\n", "neither a picture nor a video"),
        (bytes(5000), "neither a picture nor a video"),
        (b"#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1:1/a.ts\n", "neither a picture nor a video"),
        (b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5004 RTP/AVP 96\n", "neither a picture nor a video"),
        (
            struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(99),
            "is a HEIC picture, which cannot be read here",
        ),
        (struct.pack(">I", 24) + b"ftypmif1\0\0\0\0mif1avif" + bytes(99), "is an AVIF picture, which cannot be read"),
    ],
)
def test_what_is_refused(told, content, message):
    with pytest.raises(BadInput, match=message):
        told(content)


def test_a_damaged_picture_is_still_one(told):
    """So that who loads it says what is wrong with it."""
    assert told(saved("PNG")[:20]) == told(b"\xff\xd8\xff\xe0junk") == "image"
