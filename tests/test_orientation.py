"""Phones store pictures as the sensor lies, and say in EXIF which way up: heard by everything that opens one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from eval.media.numbered import frame, read
from tokenprune import BadInput, Plan
from tokenprune.chat import Chat
from tokenprune.cli import app
from tokenprune.cli.shown import load_shown
from tokenprune.demo.session import Session
from tokenprune.explain.answers import explain
from tokenprune.media.files import MAX_PIXELS
from tokenprune.media.pictures import load_image

SHOWN = frame(21, scale=2)
# Where the standard (CIPA DC-008, tag 274) has the first stored row and column.
STORED = {
    1: SHOWN,
    2: SHOWN[:, ::-1],
    3: SHOWN[::-1, ::-1],
    4: SHOWN[::-1],
    5: SHOWN.transpose(1, 0, 2),
    6: np.rot90(SHOWN),
    7: SHOWN[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(SHOWN, -1),
}


@pytest.fixture(params=STORED)
def photo(request, tmp_path):
    """A PNG that says how it lies."""
    exif = Image.Exif()
    exif[274] = request.param
    path = tmp_path / f"photo{request.param}.png"
    Image.fromarray(np.ascontiguousarray(STORED[request.param])).save(path, exif=exif)
    return path


@pytest.fixture(scope="module")
def chat():
    return Chat.load("scenes")


def upright(picture):
    return read(np.asarray(picture)) == (21, 0) and picture.size == (192, 128)


def test_loaded(photo):
    assert upright(load_image(photo))


@pytest.mark.parametrize("ending", ["jpg", "webp", "tif"])
def test_other_formats(photo, tmp_path, ending):
    path = tmp_path / f"again.{ending}"
    with Image.open(photo) as stored:
        stored.save(path, exif=stored.getexif())
    assert upright(load_image(path))


def test_command_line(photo, monkeypatch):
    seen = []

    def stop(self, shown, question):
        seen.append(shown)
        raise BadInput("enough")

    monkeypatch.setattr(Chat, "inputs", stop)
    monkeypatch.setattr(Chat, "load", lambda *_, **__: Chat(None, None))
    monkeypatch.setattr(Plan, "check", lambda *_: None)
    for command in ("run", "explain", "check"):
        CliRunner().invoke(app, [command, "--image", str(photo), "--prompt", "what ?"])
    assert len(seen) >= 2
    assert all(map(upright, seen))
    assert upright(load_shown(photo, None, None, None, MAX_PIXELS, False)[0])


def test_chat(photo, chat):
    """A file, and a picture that somebody else has opened."""
    expected = chat.inputs(Image.fromarray(SHOWN), "what ?")["pixel_values"]
    assert torch.equal(chat.inputs(photo, "what ?")["pixel_values"], expected)
    assert torch.equal(chat.inputs(str(photo), "what ?")["pixel_values"], expected)
    with Image.open(photo) as opened:
        assert torch.equal(chat.inputs(opened, "what ?")["pixel_values"], expected)


def test_demo(photo):
    assert upright(Session.open(SimpleNamespace(frames=4), photo))


def test_explain(photo, chat):
    one, other = (
        explain(chat, shown, "what ?", Plan.of("uniform", keep=0.5), 1).pictures[0]
        for shown in (photo, Image.fromarray(SHOWN))
    )
    assert np.array_equal(np.asarray(one), np.asarray(other))


def test_lmms_eval(photo):
    from tokenprune.evaluation.lmms_eval.model import Tokenprune

    for given in (str(photo), Image.open(photo)):
        assert upright(Tokenprune._part(None, {"type": "image", "url": given})["image"])
