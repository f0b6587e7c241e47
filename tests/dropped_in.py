"""Run by `test_one_file.py` in a copy of the repository into which the files of two methods were put."""

from __future__ import annotations

import json

import pytest
import torch

import tokenprune
from eval import readme, tables
from eval.method_page import method_page
from tests.laws import BATCHES, check_oracle
from tests.tiny import FAMILIES
from tokenprune import prune, scenes, select
from tokenprune.chat import Chat
from tokenprune.families.registry import all_families
from tokenprune.media.pictures import load_image
from tokenprune.methods.registry import all_methods

NEW = {"spread": "Spread", "asked": "Asked"}


@pytest.mark.parametrize("method", NEW)
def test_a_name_of_the_package(method):
    names: dict = {}
    exec(f"from tokenprune import *; found = tokenprune.{NEW[method]}", names | {"tokenprune": tokenprune}, names)
    assert names["found"] is names[NEW[method]] is all_methods()[method]
    assert NEW[method] not in readme.STUB.read_text(), "nobody wrote it there"
    assert f"from .methods.{method} import {NEW[method]} as {NEW[method]}\n" in readme.stub()


def test_on_the_command_line(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = command("list")
    assert code == 0
    rows = [[cell.strip() for cell in line.split("  ") if cell] for line in out.splitlines()]
    assert ["spread", "2026", "diversity", "0", "features", "pictures, any question"] in rows
    assert ["asked", "2026", "text-guided", "2", "attention", "pictures, one question"] in rows
    code, out, _ = command("list", "arXiv 0000.00000")
    assert code == 0
    assert out.startswith("spread     Spread (a made-up paper)")
    assert "--channels 8  how many channels count" in out
    code, out, err = command("run", "--method", "spread", "--keep", "16", "--channels", "4", "--json")
    assert code == 0, err
    assert json.loads(out)["report"]["stages"][0]["after"] == [16]
    code, _, err = command("run", "--method", "asked", "--heads", "mex")
    assert code == 2
    assert "Did you mean 'max'?" in " ".join(err.split())


def test_in_python():
    chat = Chat.load(scenes.MODEL)
    inputs = chat.inputs(load_image(scenes.IMAGE), scenes.QUESTION)
    for method in NEW:
        with prune(chat.model, method, keep=0.25) as run:
            chat.answer(inputs, max_new_tokens=2)
        assert run.report().final_tokens == 36
    assert select("spread", keep=5, channels=2, features=torch.randn(3, 9, 4)).index.shape == (3, 5)


def test_in_the_tables():
    count = len(all_families())
    assert f"| [`spread`](spread.md) | 2026 | diversity | before the LLM | {count} |" in tables.methods()
    assert f"| [`asked`](asked.md) | 2026 | text-guided | before layer 2 | {count} |" in tables.methods()
    assert tables.matrix().count("`spread`") == 1
    page = method_page(all_methods()["spread"])
    assert "| `channels` | `8` | how many channels count |" in page
    assert "| `features` | `[n, d]` |" in page


@pytest.mark.parametrize("method", NEW)
@pytest.mark.parametrize(("name", "positions"), [("llava_next", "original"), ("qwen2_5_vl", "compact")])
def test_a_law(method, name, positions):
    check_oracle(FAMILIES[name], FAMILIES[name].build(), BATCHES["padded"], method, positions)
