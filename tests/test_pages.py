"""The pages that the bundled reader learned from, and how it was trained."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForImageTextToText, Qwen3VLForConditionalGeneration
from typer.testing import CliRunner

import tokenprune
from eval.tasks.utils import box_iou, character_errors
from eval.worlds import judge
from eval.worlds.base import Question, is_right
from eval.worlds.batches import Batches
from eval.worlds.packed import packed_hidden
from eval.worlds.pages.draw import KINDS, SIZES, make_drill, make_page
from eval.worlds.pages.encoder import encode
from eval.worlds.pages.model import make_image_processor
from eval.worlds.pages.questions import ASK
from eval.worlds.pages.sheet import TOKEN
from eval.worlds.pages.world import CLASSES, PAGES, labels
from tokenprune import BadInput, prune, scenes
from tokenprune.chat import Chat
from tokenprune.cli import app
from tokenprune.media.clip import Clip
from tokenprune.media.pictures import load_image
from tokenprune.media.qwen import FrameProcessor


def test_pages_are_reproducible_and_of_the_sizes_that_are_told():
    kinds = set()
    for index in range(40):
        one, other = (PAGES.draw(PAGES.rng("test", index)) for _ in range(2))
        assert np.array_equal(one.pixels, other.pixels)
        height, width = (side // TOKEN for side in one.pixels.shape[:2])
        assert (width, height) in SIZES
        assert 200 <= width * height <= 900
        kinds.add(one.kind)
    assert kinds == set(KINDS)
    assert not np.array_equal(PAGES.draw(PAGES.rng("train", 0)).pixels, PAGES.draw(PAGES.rng("test", 0)).pixels)


@pytest.mark.parametrize("make", [make_page, make_drill])
def test_what_stands_on_a_page_is_drawn_where_it_is_said_to_be(make):
    """The ink of a word lies in its box, and a word is on a page once."""
    for index in range(30):
        page = make(np.random.default_rng([5, index]), SIZES[index % len(SIZES)])
        texts = [word.text.rstrip(":") for word in page.words]
        assert len(texts) == len(set(texts))
        for word in page.words:
            left, top, right, bottom = (round(v) for v in word.box)
            box = page.pixels[max(top, 0) : bottom, max(left, 0) : right].astype(int)
            assert np.ptp(box, axis=(0, 1)).max() > 60, word
            assert len(word.centres) == len(word.text)


def test_labels_name_the_character_whose_centre_lies_in_a_token():
    page = make_page(np.random.default_rng(3), SIZES[2])
    owner, flags = labels(page)
    width = page.pixels.shape[1] // TOKEN
    word = page.words[0]
    assert word.heading
    for i, (x, y) in enumerate(word.centres):
        at = int(y // TOKEN) * width + int(x // TOKEN)
        named = [CLASSES[v] for v in owner[at, :2].tolist() if v >= 0]
        assert word.text[i] in named
        assert flags[at, 1] == 1
        assert owner[at, 2] == int((int(x // TOKEN) + 0.5) / width * 32)
    last = word.centres[-1]
    assert flags[int(last[1] // TOKEN) * width + int(last[0] // TOKEN), 0] == 1
    assert (owner[:, 1] >= 0).sum() < (owner[:, 0] >= 0).sum() < len(owner) / 2


def test_questions_fit_and_answers_are_right():
    tokenizer, seen = PAGES.make_tokenizer(), dict.fromkeys(ASK, 0)
    for index in range(150):
        rng = PAGES.rng("train", index)
        page = PAGES.draw(rng)
        there = {word.text.rstrip(":") for word in page.words}
        for kind, ask in ASK.items():
            question = ask(rng, page)
            if question is None:
                continue
            seen[kind] += 1
            assert question.type == kind
            assert is_right(question, question.answer)
            assert not is_right(question, "nothing")
            ids = tokenizer(f"{question.text}<assistant>{question.answer}</s>", add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert len(ids) <= PAGES.lengths[kind == "transcribe"]
            answer = tokenizer(question.answer, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(answer) == question.answer
            assert len(answer) < PAGES.longest(kind)
            for quoted in re.findall('"(.+?)"', question.text):
                assert (quoted in there) == (question.answer != "no")
            if kind in ("value", "price", "cell", "ticked"):
                assert question.answer in there
            if kind in ("title", "transcribe"):
                assert set(question.answer.split()) <= there
    assert min(seen.values()) > 10


def test_boxes_and_transcripts_are_measured():
    box = Question("where", "", "x2y3x5y4")
    assert box_iou(box.answer, "x2y3x5y4") == 1
    assert box_iou(box.answer, "x4y3x7y4") == pytest.approx(4 / 12)
    assert box_iou(box.answer, "x9y9x9y9") == box_iou(box.answer, "yes") == box_iou(box.answer, "x5y4x2y3") == 0
    assert [is_right(box, said) for said in ("x2y3x6y4", "x2 y3 x5 y5", "x4y3x7y4", "no")] == [True, True, False, False]
    assert character_errors("abcd", "abd") == 0.25
    assert character_errors("abcd", "xabcd") == 0.25
    assert character_errors("ab", "") == 1
    block = Question("transcribe", "", "one two three four")
    assert [is_right(block, said) for said in ("one two three four", "one two tree four", "one two")] == [
        *(True, True, False)
    ]


def test_training_sees_what_inference_sees():
    """Batched encoder and packed questions against the library's own model and image processor."""
    torch.manual_seed(0)
    tokenizer = PAGES.make_tokenizer()
    model = PAGES.make_model(len(tokenizer)).eval()
    for merger in model.model.visual.deepstack_merger_list:
        torch.nn.init.normal_(merger.linear_fc2.weight, std=0.1)
    batch = Batches(PAGES, tokenizer, "train", 4).batch(2)
    pixels = batch.pixels.float()
    height, width = (side // TOKEN for side in pixels.shape[-2:])
    count = len(pixels)
    pages = [make_page(PAGES.rng("train", 8 + i), (width, height)) for i in range(count)]
    made = make_image_processor()(images=[page.image for page in pages], return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, 2 * height, 2 * width]] * count
    exact = torch.stack([torch.tensor(page.pixels).permute(2, 0, 1) / 127.5 - 1 for page in pages])
    torch.testing.assert_close(exact, pixels[:, 0], atol=1 / 128, rtol=0)
    text, image = model.model.language_model, tokenizer.convert_tokens_to_ids("<|image_pad|>")
    with torch.no_grad():
        features, planes = encode(model.model.visual, exact)
        own = model.model.visual(made["pixel_values"], made["image_grid_thw"])
        torch.testing.assert_close(features.flatten(0, 1), own.pooler_output, atol=1e-5, rtol=0)
        for plane, other in zip(planes, own.deepstack_features, strict=True):
            torch.testing.assert_close(plane.flatten(0, 1), other, atol=1e-5, rtol=0)
        head, tail = (torch.tensor(tokenizer.convert_tokens_to_ids(list(p))) for p in (PAGES.head, PAGES.tail))
        parts = [text.embed_tokens(head).expand(count, -1, -1), features, text.embed_tokens(tail).expand(count, -1, -1)]
        added = [functional.pad(plane, (0, 0, len(head), len(tail))) for plane in planes]
        packs = [pack.ids for pack in batch.packs]
        hidden = packed_hidden(text, torch.cat(parts, 1), packs, PAGES.rope(model, batch.pixels, batch.shared), added)
        for pack, found in zip(batch.packs, hidden, strict=True):
            asked = int((pack.weight[-1, 1] > 0).nonzero()[0])
            ids = torch.cat([head, torch.full((height * width,), image), tail, pack.ids[-1, 1, :asked]])[None]
            inputs = {
                "input_ids": ids,
                "pixel_values": made["pixel_values"][-4 * height * width :],
                "image_grid_thw": made["image_grid_thw"][-1:],
                "mm_token_type_ids": (ids == image).int(),
            }
            alone = model(**inputs).logits[0, -1]
            torch.testing.assert_close(model.lm_head(found[-1, 1, asked - 1]), alone, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def chat():
    return Chat.load("pages")


def test_it_is_a_standard_model(chat):
    model = AutoModelForImageTextToText.from_pretrained(scenes.PAGES_MODEL)
    assert type(model) is Qwen3VLForConditionalGeneration
    assert next(model.parameters()).dtype == torch.float16
    text, vision = model.config.text_config, model.config.vision_config
    assert text.num_hidden_layers >= 8
    assert text.head_dim >= 32
    assert len(vision.deepstack_visual_indexes) >= 2
    assert text.rope_parameters["mrope_interleaved"]
    assert sum(f.stat().st_size for f in scenes.PAGES_MODEL.iterdir()) <= 16 * 2**20
    assert sum(f.stat().st_size for f in scenes.FOLDER.rglob("*") if f.is_file()) <= 31 * 2**20  # of the wheel's 32


@pytest.mark.parametrize(
    ("page", "question", "answer"),
    [
        (0, 'price of "goha" ?', "12.85"),
        (0, 'what is after "gate" ?', "2l-57"),
        (0, "what is the title ?", "exid oxi"),
        (0, "how many items are there ?", "4"),
        (1, "which box is ticked ?", "kdhdfg"),
        (1, 'what is after "client" ?', "8u-99"),
    ],
)
def test_it_reads_the_bundled_pages(chat, page, question, answer):
    inputs = chat.inputs(load_image(scenes.PAGES[page]), question)
    assert chat.answer(inputs, 20)[0] == answer
    with prune(chat.model, "pixelprune") as run:  # flat grounds alone go, which counting needs
        assert (chat.answer(inputs, 20)[0] == answer) or question.startswith("how many")
        assert run.report().final_tokens < 0.6 * run.report().tokens


def test_a_bundled_picture_is_meant_where_there_is_no_file_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    receipt = Path("receipt.png")
    assert scenes.find_picture(receipt) == scenes.PAGES[0]
    assert scenes.model_for(scenes.find_picture(receipt)) == "pages"
    shutil.copy(scenes.IMAGE, receipt)
    assert scenes.find_picture(receipt) == receipt
    assert scenes.model_for(receipt) == "scenes"
    shutil.copy(scenes.PAGES[1], receipt)
    assert scenes.model_for(receipt) == "pages"
    assert scenes.find_picture(Path("other.png")) == Path("other.png")
    assert scenes.find_picture(Path("model")) == Path("model")  # no picture


def test_a_command_reads_the_bundled_receipt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = [
        "run",
        "--image",
        "receipt.png",
        "--prompt",
        'price of "qaxuc" ?',
        "--keep",
        "0.5",
        "--repeat",
        "1",
        "--json",
    ]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["dense"], found["pruned"]) == ("81.74", "81.74")


@pytest.mark.nightly
def test_it_reads(chat):
    """A small sample of the held-out report: far above the blind score."""
    seeing, blind = judge.judge(PAGES, chat, 12), judge.judge(PAGES, chat, 12, blind=True)
    assert judge.sum_scores(seeing)["all"] >= 0.8, seeing
    for kind in PAGES.types:
        assert seeing[kind]["right"] > blind[kind]["right"] + 0.2, (kind, seeing[kind], blind[kind])


def test_it_is_pruned_and_keeps_the_size_of_a_page(chat):
    """Through the processor that does without torchvision; videos are refused."""
    page = PAGES.draw(PAGES.rng("test", 3))
    inputs = chat.inputs(page.image, "what is the title ?")
    height, width = (side // TOKEN for side in page.pixels.shape[:2])
    assert inputs["image_grid_thw"].tolist() == [[1, 2 * height, 2 * width]]
    found = tokenprune.check(chat.model, inputs, "pixelprune", tau=0.0)
    assert found.ok, found
    with prune(chat.model, "divprune", keep=0.5) as run:
        assert isinstance(chat.answer(inputs, max_new_tokens=4)[0], str)
        assert run.report().final_tokens == height * width // 2
    if isinstance(chat.processor, FrameProcessor):
        with pytest.raises(BadInput, match="Videos of this model need torchvision"):
            chat.processor(text="<|video_pad|>", videos=[Clip([page.image] * 2, [0.0, 0.5], 2)])
