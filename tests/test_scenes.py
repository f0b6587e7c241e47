"""The bundled model and the world it was trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from eval.worlds import judge
from eval.worlds.base import Question, is_right
from eval.worlds.batches import Batches, encode
from eval.worlds.packed import packed_hidden
from eval.worlds.scenes.draw import Thing
from eval.worlds.scenes.questions import ASK, box_iou, centre_of, distance, vocabulary
from eval.worlds.scenes.world import SCENES
from tests.laws import kept_by_layer
from tests.oracle import oracle_logits
from tests.tiny.llavas import TinyLlava
from tokenprune import prune, scenes
from tokenprune.chat import Chat
from tokenprune.media.pictures import load_image

pytestmark = pytest.mark.scenes
IMAGE_TOKEN = 4


@pytest.fixture(scope="module")
def chat():
    return Chat.load(scenes.MODEL)


def test_it_is_a_standard_model():
    model = AutoModelForImageTextToText.from_pretrained(scenes.MODEL)
    processor = AutoProcessor.from_pretrained(scenes.MODEL)
    assert type(model) is LlavaForConditionalGeneration
    assert len(model.model.language_model.layers) >= 8
    assert next(model.parameters()).dtype == torch.float16
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color is the ring ?"}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    inputs = processor(images=load_image(scenes.IMAGE), text=text, return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 144
    assert processor.tokenizer.unk_token_id not in inputs["input_ids"]
    assert sum(f.stat().st_size for f in scenes.MODEL.iterdir()) <= 16 * 2**20


@pytest.mark.nightly
def test_it_sees(chat):
    """A small sample of the held-out report: every type is far above its blind score."""
    scores = judge.judge(SCENES, chat, 20)
    blind = judge.judge(SCENES, chat, 20, blind=True)
    for kind in SCENES.types:
        assert scores[kind]["right"] >= 0.75, (kind, scores[kind])
        assert scores[kind]["right"] > blind[kind]["right"] + 0.2, (kind, blind[kind])
    assert sum(s["right"] for s in scores.values()) / len(SCENES.types) >= 0.9


@pytest.mark.nightly
def test_diversity_beats_the_baselines_at_a_tenth(chat):
    scores = {}
    for method in ("divprune", "random", "uniform"):
        with prune(chat.model, method, keep=0.1):
            found = []
            for kind in SCENES.types[:-1]:
                asked = judge.questions(SCENES, kind, 40)
                found.append(judge.score(SCENES, asked, judge.answers(SCENES, chat, asked)))
        scores[method] = sum(f["right"] for f in found) / len(found)
    assert scores["divprune"] > max(scores["random"], scores["uniform"]), scores


@pytest.mark.laws
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("method", ["divprune", "fastv", "fopru", "random", "uniform"])
def test_trained_weights_equal_the_oracle(chat, method, positions):
    """Law 3 where attention is sharp: logits of a padded batch of real questions."""
    asked = [judge.questions(SCENES, kind, 1)[0] for kind in ("position", "relation", "count")]
    texts = [f"<s><user><image>{a.question.text}<assistant>" for a in asked]
    inputs = chat.processor(images=[a.shown for a in asked], text=texts, return_tensors="pt", padding=True)
    with prune(chat.model, method, keep=0.25, positions=positions) as run:
        out = chat.model.generate(
            **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        kept = kept_by_layer(run)
    more = out.sequences.shape[1] - inputs["input_ids"].shape[1]
    whole = dict(inputs) | {
        "input_ids": out.sequences,
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones(len(asked), more, dtype=torch.long)], 1),
    }
    family = TinyLlava()
    family.placeholder = (IMAGE_TOKEN,)
    expected = oracle_logits(family, chat.model, whole, kept, positions == "compact")
    for step, logits in enumerate(out.logits):
        wanted = expected[:, inputs["input_ids"].shape[1] - 1 + step]
        torch.testing.assert_close(logits, wanted, atol=1e-4 * max(1, wanted.abs().max().item() / 10), rtol=0)


def test_scenes_are_reproducible_and_apart():
    for index in range(30):
        a, b = (SCENES.draw(SCENES.rng("test", index)) for _ in range(2))
        assert a.things == b.things
        assert np.array_equal(a.pixels, b.pixels)
        assert len({t.name for t in a.things}) == len(a.things)
        covered = set(a.owner.tolist()) - {-1}
        assert covered == set(range(len(a.things)))
    assert SCENES.draw(SCENES.rng("train", 0)).things != SCENES.draw(SCENES.rng("test", 0)).things


def test_questions_fit_and_answers_are_right():
    tokenizer, words = SCENES.make_tokenizer(), set(vocabulary())
    short, long = SCENES.lengths
    for index in range(100):
        rng = SCENES.rng("train", index)
        scene = SCENES.draw(rng)
        for kind, ask in ASK.items():
            question = ask(rng, scene)
            if question is None:
                continue
            assert set(question.text.split()) | set(question.answer.split()) <= words
            ids, _ = encode(tokenizer, question, long if kind == "caption" else short)
            assert len(ids) == (long if kind == "caption" else short)
            assert is_right(question, question.answer)
            assert not is_right(question, "")
            assert tokenizer(question.text)["input_ids"] == ids[: len(question.text.split())]


def test_existence_is_balanced():
    asked = judge.questions(SCENES, "existence", 400)
    assert 0.44 <= sum(a.question.answer == "yes" for a in asked) / 400 <= 0.56


def test_scoring():
    thing = Thing("circle", "red", x=20, y=36, radius=10)
    where = Question("position", "", "x2 y4", thing)
    assert centre_of("x2 y4") == (20.0, 36.0)
    assert (distance(where, "x2 y4"), box_iou(where, "x2 y4")) == (0.0, 1.0)
    assert is_right(where, "x3 y5")
    assert not is_right(where, "x4 y4")
    assert not is_right(where, "yes")
    assert (distance(where, "yes"), box_iou(where, "yes")) == (float("inf"), 0.0)
    caption = Question("caption", "", "red circle , blue 3")
    assert is_right(caption, "blue 3 , red circle")
    assert not is_right(caption, "blue 3")
    assert not is_right(caption, "blue 3 , red circle , red circle")


def test_packed_questions_equal_questions_alone():
    """Training sees what inference sees: a packed question's hidden states are those of the same question alone."""
    torch.manual_seed(0)
    tokenizer = SCENES.make_tokenizer()
    llama = SCENES.make_model(len(tokenizer)).model.language_model.eval()
    packs = Batches(SCENES, tokenizer, "train", 2).batch(0).packs
    assert [p.ids.shape for p in packs] == [(2, len(SCENES.pack), SCENES.lengths[0]), (2, 1, SCENES.lengths[1])]
    prefix = torch.randn(2, 9, 160)
    with torch.no_grad():
        short, caption = packed_hidden(llama, prefix, [pack.ids for pack in packs])
        for got, ids in ((short[1, 5], packs[0].ids[1, 5]), (caption[1, 0], packs[1].ids[1, 0])):
            alone = torch.cat([prefix[1:], llama.embed_tokens(ids)[None]], dim=1)
            expected = llama(inputs_embeds=alone).last_hidden_state[0, 9:]
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
