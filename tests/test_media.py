"""Videos as people have them: every container and codec by every reader, and files that are cut, turned or no video."""

from __future__ import annotations

import json
import subprocess
import sys
import wave
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from eval.media import clips
from eval.media.compare import RESULT, cases, judged
from eval.media.numbered import frame, read, turn_frame
from tokenprune import BadInput, load_video, scenes
from tokenprune.chat import Chat
from tokenprune.media.clip import read_counts, sample
from tokenprune.media.files import MAX_PIXELS
from tokenprune.media.readers import READERS
from tokenprune.media.target import Target

BARE = ("h264", "hevc", "m1v", "mjpeg")
PROPERTIES = ("order", "numbers", "times", "rotation")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every clip of the table, by name."""
    return {name: rest for name, *rest in cases(tmp_path_factory.mktemp("clips"))}


def numbers(clip):
    return [read(np.asarray(picture))[0] for picture in clip.frames]


def test_numbers_survive_and_turns_are_told_apart():
    for number in (0, 21, 42, 63):
        assert read(frame(number)) == (number, 0)
        found = {read(turn_frame(frame(number), turn)) for turn in range(8)}
        assert len(found) == 8
        assert {n for n, _ in found} == {number}
    assert read(np.zeros((64, 96, 3), np.uint8)) == (None, None)


def test_every_container_is_right_or_refused(made):
    """By PyAV, the default, all but bare streams are right; by decord, what is not refused."""
    for name, (path, *shown) in made.items():
        for reader in (None, "av"):
            found = judged(path, reader, *shown)
            if path.suffix[1:] in BARE:
                assert "bare stream" in found["refused"], name
            else:
                assert [found.get(p) for p in PROPERTIES] == ["right"] * 4, (name, found)
                assert found["reader"] == "av"
        found = judged(path, "decord", *shown)
        assert "refused" in found or [found[p] for p in PROPERTIES] == ["right"] * 4, (name, found)


def test_readers_give_the_same(made):
    """Numbers, times, size and pixels, wherever both read a file; and both read the usual ones."""
    both = 0
    for path, *_ in made.values():
        try:
            found = [load_video(path, 5, reader=reader) for reader in READERS]
        except BadInput:
            continue
        both += 1
        a, b = found
        assert (a.numbers, a.seconds, a.total, a.size) == (b.numbers, b.seconds, b.total, b.size)
        for x, y in zip(a.frames, b.frames, strict=True):
            assert np.abs(np.asarray(x).astype(int) - np.asarray(y)).mean() < 3
    assert both >= 15


def test_the_table_is_of_these_clips(made):
    table = json.loads(RESULT.read_text())
    assert list(table) == list(made)
    assert "wrong" not in str(table)


def test_frames_before_zero_are_there(made):
    """Matroska keeps them; an edit list of MP4 says that they are not to be shown."""
    late = load_video(made["mkv libx264, cut without encoding"][0], 100)
    assert late.seconds[:4] == pytest.approx([-0.3, -0.2, -0.1, 0])
    assert numbers(late) == list(range(24, 60))
    edited = load_video(made["mp4 libx264, cut without encoding"][0], 100)
    assert edited.seconds[:2] == pytest.approx([0, 0.1])
    assert numbers(edited) == list(range(27, 60))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_uneven_times(tmp_path, ending):
    path = clips.write(tmp_path / f"uneven.{ending}", "libx264", count=20, ticks=lambda i: i * i)
    clip = load_video(path, 3)
    assert numbers(clip) == [0, 13, 19]
    assert clip.seconds == pytest.approx([0, 16.9, 36.1], abs=0.01)
    assert numbers(load_video(path, fps=0.1)) == [0, 10, 14, 17]


def test_cut_files(made, tmp_path):
    """What is there of a transport stream is a stream; a file that promises more than there is, is refused."""
    for name in ("mp4 libx264", "avi mjpeg", "mkv libx264", "flv libx264", "wmv wmv2"):
        path = made[name][0]
        short = tmp_path / f"cut{path.suffix}"
        short.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(BadInput, match=r"cut short|not a video|is damaged"):
            load_video(short)


def test_what_is_no_video(tmp_path):
    sound = tmp_path / "sound.wav"
    with wave.open(str(sound), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(16000))
    with pytest.raises(BadInput, match=r"no video stream, only audio\. "):
        load_video(sound)
    covered = tmp_path / "song.m4a"
    with av.open(str(sound)) as given, av.open(str(covered), "w", format="mp4") as out:
        audio, cover = out.add_stream("aac", rate=8000), out.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame.from_ndarray(frame(3), format="rgb24").reformat(format="yuvj420p")))
        for heard in given.decode(audio=0):
            out.mux(audio.encode(heard))
        out.mux(audio.encode())
    with pytest.raises(BadInput, match="no video stream, only audio and a cover picture"):
        load_video(covered)
    with pytest.raises(BadInput, match="a picture, not a video"):
        load_video(scenes.IMAGE)
    for url in ("https://example.com/a/b.mp4", Path("https://example.com/a/b.mp4")):
        with pytest.raises(BadInput, match=r"^https://example\.com/a/b\.mp4 is a URL, and URLs are not fetched"):
            load_video(url)


@pytest.mark.parametrize("fps", [float("inf"), float("nan"), 0, -1, "2", True, np.True_, 1j])
def test_rates_that_are_none(fps):
    with pytest.raises(BadInput, match=r"^fps=.* must be a finite number above 0"):
        load_video(scenes.VIDEO, fps=fps)


@pytest.mark.parametrize("frames", [0, -1, 2.5, "4", True, float("inf"), [3]])
def test_counts_that_are_none(frames):
    with pytest.raises(BadInput, match=r"^frames=.* must be a whole number from 1 on"):
        load_video(scenes.VIDEO, frames=frames)


def test_counts_and_rates_beyond_the_clip_give_all_of_it():
    times = np.arange(60) / 10
    for frames, fps in ((100_000_000_000, None), (10**30, None), (None, 1e9), (None, 1e300), (None, np.float64(1e11))):
        assert sample(times, *read_counts(frames, fps)) == list(range(60))
    assert sample(times, *read_counts(np.int64(4), None)) == [0, 20, 39, 59]
    assert sample(times, *read_counts(None, 5e-324)) == [0]


def test_large_frames_are_scaled_as_they_come(tmp_path):
    """And a clip of frames that are too many or too large is refused by the name of the limit."""
    path = clips.write(tmp_path / "large.mp4", "libx264", count=20, scale=8, turn="right")
    clip = load_video(path, 10, max_pixels=10 * 300 * 200 * 4)
    assert clip.size == (768, 512)
    width, height = clip.frames[0].size
    assert (width, height) == pytest.approx((600, 400), abs=1)
    assert f"scaled from 768 x 512 to {width} x {height}" in str(clip)
    assert numbers(clip) == clip.numbers
    for options, match in (
        ({"max_pixels": 768 * 512 - 1}, "frames of (512 x 768|768 x 512) pixels, over the limit of 393215.*max_pixels"),
        ({"max_pixels": 768 * 512, "frames": 20}, "20 frames of .* do not fit into 393216 pixels.*max_pixels"),
        ({"reader": "decord", "max_pixels": 768 * 512 * 2, "frames": 3}, "decord.*Leave reader= out"),
        ({"max_pixels": 0}, "max_pixels=0 must be"),
    ):
        with pytest.raises(BadInput, match=match):
            load_video(path, **options)


def test_a_clip_of_4096_x_4096_takes_no_gigabytes(tmp_path):
    path = tmp_path / "huge.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width = stream.height = 4096
        stream.pix_fmt = "yuv420p"
        grey = av.VideoFrame(4096, 4096, "yuv420p")
        for i in range(8):
            grey.pts = i
            out.mux(stream.encode(grey))
        out.mux(stream.encode())
    code = (
        "import resource, tokenprune; top = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024; "
        "from tokenprune.media import video; import numpy, av, rich.progress; before = top(); "
        f"clip = tokenprune.load_video({str(path)!r}); print(top() - before, *clip.frames[0].size)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, width, height = map(int, done.stdout.split())
    assert 8 * width * height <= MAX_PIXELS
    assert grown < 700


def test_targets_of_processors():
    """What frames are resized to: a fixed size, a short side, or a number of pixels; else nothing is known."""
    for size, own, target in (
        ({"height": 384, "width": 336}, {}, Target(side=384)),
        ({"shortest_edge": 224}, {"crop_size": {"height": 224, "width": 224}}, Target(side=224)),
        ({"shortest_edge": 100, "longest_edge": 5000}, {"merge_size": 2}, Target(pixels=5000)),
        ({"shortest_edge": 100, "longest_edge": 200}, {}, None),
        ({"longest_edge": 1456}, {"max_image_size": {"longest_edge": 364}}, None),
        ({"shortest_edge": 224}, {"do_resize": False}, None),
    ):
        assert Target.of(
            SimpleNamespace(video_processor=SimpleNamespace(**{"do_resize": True, "size": size} | own))
        ) == (target)
    assert Target.of(SimpleNamespace(image_processor=SimpleNamespace(size={"shortest_edge": 224}))) is None
    assert Target.of(Chat.load("scenes-video").processor) == Target(pixels=4096)


def test_frames_are_divided_by_what_keeps_their_shape():
    for size, target, expected in (
        ((4096, 4096), Target(pixels=4096), (256, 256)),
        ((3840, 2160), Target(side=384), (1920, 1080)),
        ((2160, 3840), Target(side=384), (1080, 1920)),
        ((3840, 2160), Target(pixels=602112), (3840, 2160)),
        ((3840, 2160), Target(pixels=518400), (1920, 1080)),
        ((1920, 1080), Target(side=384), (1920, 1080)),
        ((4093, 4096), Target(side=24), (4093, 4096)),
        ((3840, 2160), Target(side=8), (384, 216)),
    ):
        assert target.divide(size) == expected


def test_divided_frames_get_the_grid_of_whole_ones():
    """By the rule that Qwen publishes, where both are above its limit."""
    draw = np.random.default_rng(0)
    scaled = 0
    for _ in range(3000):
        step, most = int(draw.choice([1, 2, 60, 128])), 28 * 28 * int(draw.integers(4, 2000))
        width, height = (step * int(x) for x in draw.integers(600, 4000, 2) // step)
        if draw.random() < 0.3:
            height = width
        small = Target(pixels=most).divide((width, height))
        scaled += small != (width, height)
        sides = [
            smart_resize(h, w, factor=28, min_pixels=56 * 56, max_pixels=most) for w, h in (small, (width, height))
        ]
        assert sides[0] == sides[1], (width, height, small, most)
    assert scaled > 500


def test_a_model_sees_the_same_in_divided_frames(tmp_path):
    path = tmp_path / "large.mp4"
    frames = [one.resize((1024, 768)) for one in load_video(scenes.VIDEO).frames]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 1024, 768, "yuv420p"
        for i, picture in enumerate(frames):
            shown = av.VideoFrame.from_image(picture)
            shown.pts = i
            out.mux(stream.encode(shown))
        out.mux(stream.encode())
    chat = Chat.load("scenes-video")
    whole, divided = load_video(path, 32), chat.load_video(path, frames=32)
    assert (whole.frames[0].size, divided.frames[0].size, divided.size) == ((1024, 768), (512, 384), (1024, 768))
    assert (whole.numbers, whole.seconds) == (divided.numbers, divided.seconds)
    a, b = (chat.inputs(clip, scenes.VIDEO_QUESTION) for clip in (whole, divided))
    assert torch.equal(a["video_grid_thw"], b["video_grid_thw"])
    levels = (a["pixel_values_videos"] - b["pixel_values_videos"]).abs() * 0.27 * 255
    assert levels.mean() < 1
    assert levels.max() < 8
    assert chat.answer(a, 4)[0] == chat.answer(b, 4)[0]
    assert chat.load_video(path, frames=3, reader="decord").frames[0].size == (1024, 768)


@pytest.mark.parametrize("pixels", [{"min_pixels": 10000, "max_pixels": 20000}, {"max_pixels": 2500}])
def test_pixels_without_torchvision(pixels):
    """Grids by the rule that Qwen publishes: sides to the nearest multiple, then inside the limits."""
    chat = Chat.load("scenes-video", pixels=pixels)
    clip = load_video(scenes.VIDEO, 4)
    made = chat.inputs(clip, "what appears first ?")
    side = 16
    width, height = clip.frames[0].size
    w, h = (side * round(x / side) for x in (width, height))
    least, most = pixels.get("min_pixels", 4096), pixels["max_pixels"]
    if w * h > most:
        shrink = (width * height / most) ** 0.5
        w, h = (side * int(x / shrink / side) for x in (width, height))
    elif w * h < least:
        grow = (least / (width * height)) ** 0.5
        w, h = (-side * int(-x * grow // side) for x in (width, height))
    assert made["video_grid_thw"].tolist() == [[2, h // 8, w // 8]]
    assert chat.inputs(clip.frames[0], "what ?")["image_grid_thw"].tolist() == [[1, h // 8, w // 8]]


def test_pixels_that_cannot_be_honoured():
    for name, pixels, match in (
        ("scenes", {"max_pixels": 5000}, "does not take pixels"),
        ("scenes-video", {"min_pixels": 9000}, "Give both"),
        ("scenes-video", {"most": 3}, "Unknown pixels 'most'"),
        ("scenes-video", {"max_pixels": 0}, "from 1 on"),
        ("scenes-video", {"min_pixels": 9, "max_pixels": 8}, "least above its most"),
    ):
        with pytest.raises(BadInput, match=match):
            Chat.load(name, pixels=pixels)
