"""Pictures that people really pass: each opens correctly or is refused with its exact message."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFile

from tokenprune import BadInput
from tokenprune.media.pictures import load_image


@pytest.fixture
def colours():
    """A 16 x 16 picture: left half red, right half blue."""
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:, :8, 0], pixels[:, 8:, 2] = 255, 255
    return Image.fromarray(pixels)


def refused(path):
    with pytest.raises(BadInput) as error:
        load_image(path)
    return str(error.value)


def test_missing(tmp_path):
    assert refused(tmp_path / "no.png") == f"There is no image at {tmp_path / 'no.png'}."


def test_folder(tmp_path):
    assert refused(tmp_path) == f"{tmp_path} is a folder. Give one image file."


def test_empty(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    assert refused(path) == f"{path} is empty (0 bytes). Give an image file."


def test_not_an_image(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("hello, this is text")
    message = f"{path} is not an image that can be read. Give a PNG, JPEG, WebP or similar file."
    assert refused(path) == message


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("lenient", [False, True])
def test_truncated(monkeypatch, tmp_path, ending, lenient):
    """Also where another library has told Pillow to make do with what there is."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    path = tmp_path / f"cut.{ending}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = refused(path)
    assert message.startswith(f"{path} is damaged or cut short (")
    assert message.endswith("). Give a complete image file.")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_one_pixel(tmp_path, colours):
    path = tmp_path / "dot.png"
    colours.crop((0, 0, 1, 1)).save(path)
    assert refused(path) == f"{path} is 1 x 1 pixels. Give at least 8 pixels on each side."


@pytest.mark.parametrize("factor", [1.2, 3])
def test_decompression_bomb(tmp_path, monkeypatch, colours, factor):
    """Between the limit and twice the limit Pillow only warns; both are refused."""
    path = tmp_path / "bomb.png"
    colours.resize((2000, 2000)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(4_000_000 / factor))
    assert refused(path) == f"{path} is too large: over {int(4 / factor)} million pixels. Scale it down first."


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_animated(tmp_path, colours, ending):
    path = tmp_path / f"moving.{ending}"
    other = colours.rotate(90)
    colours.save(path, save_all=True, append_images=[other])
    assert refused(path) == f"{path} is animated (2 frames). Give a still image."


@pytest.mark.parametrize("mode", ["CMYK", "P", "RGBA", "RGB"])
def test_modes_keep_their_colours(tmp_path, colours, mode):
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    colours.convert(mode).save(path)
    pixels = np.asarray(load_image(path)).astype(int)
    assert np.abs(pixels - np.asarray(colours)).max() <= 8


def test_transparent_is_white(tmp_path, colours):
    path = tmp_path / "clear.png"
    image = colours.convert("RGBA")
    image.putalpha(0)
    image.save(path)
    assert (np.asarray(load_image(path)) == 255).all()


def test_sixteen_bit_is_scaled_not_clipped(tmp_path):
    path = tmp_path / "deep.png"
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(path)
    assert np.abs(np.asarray(load_image(path))[..., 0].astype(int) - (ramp >> 8)).max() <= 1
