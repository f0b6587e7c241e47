"""The bundled video model and the world it was trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration

from eval.worlds import judge
from eval.worlds.base import Question, is_right
from eval.worlds.batches import Batches
from eval.worlds.clips.draw import COLOURS, EVENTS, FRAMES, STEPS, WAYS
from eval.worlds.clips.encoder import encode, patches
from eval.worlds.clips.model import make_image_processor
from eval.worlds.clips.questions import ASK, vocabulary
from eval.worlds.clips.world import CLIPS, PROMPTS, labels
from eval.worlds.packed import packed_hidden
from eval.worlds.train import join
from tests.laws import kept_by_layer
from tests.oracle import oracle_logits
from tests.tiny.qwens import TinyQwen25VL
from tokenprune import load_video, prune, scenes
from tokenprune.chat import Chat

pytestmark = pytest.mark.scenes


@pytest.fixture(scope="module")
def chat():
    return Chat.load(scenes.VIDEO_MODEL)


def test_it_is_a_standard_model(chat):
    model = AutoModelForImageTextToText.from_pretrained(scenes.VIDEO_MODEL)
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    assert next(model.parameters()).dtype == torch.float16
    assert model.config.text_config.rope_parameters["mrope_section"] == [6, 5, 5]
    assert sum(f.stat().st_size for f in scenes.VIDEO_MODEL.iterdir()) <= 16 * 2**20
    inputs = chat.inputs(CLIPS.show(CLIPS.draw(CLIPS.rng("demo", 0)).pixels), "what appears first ?")
    assert inputs["video_grid_thw"].tolist() == [[STEPS, 8, 8]]
    assert int((inputs["input_ids"] == model.config.video_token_id).sum()) == 256
    assert chat.processor.tokenizer.unk_token_id not in inputs["input_ids"]


def test_it_answers_about_the_bundled_clip(chat):
    inputs = chat.inputs(load_video(scenes.VIDEO, 32), scenes.VIDEO_QUESTION)
    assert chat.answer(inputs, 4)[0] == "purple ring"


@pytest.mark.nightly
def test_it_sees(chat):
    """A small sample of the held-out report: far above the blind score."""
    seeing, blind = judge.judge(CLIPS, chat, 12), judge.judge(CLIPS, chat, 12, blind=True)
    assert judge.summed(seeing)["all"] >= 0.75, seeing
    for kind in CLIPS.types:
        assert seeing[kind]["right"] > blind[kind]["right"] + 0.2, (kind, seeing[kind], blind[kind])


@pytest.mark.laws
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("method", ["evs", "dycoke", "vidcom2", "fastv"])
def test_trained_weights_equal_the_oracle(chat, method, positions):
    """Law 3 where attention is sharp, with real clips and M-RoPE."""
    asked = [judge.questions(CLIPS, kind, 1)[0] for kind in ("first", "direction")]
    turns = [f"<s><user><|vision_start|><|video_pad|><|vision_end|>{a.question.text}<assistant>" for a in asked]
    inputs = dict(chat.processor(text=turns, videos=[a.shown for a in asked], padding=True))
    inputs["second_per_grid_ts"] = torch.tensor(inputs["second_per_grid_ts"])
    with torch.no_grad(), prune(chat.model, method, keep=0.25, positions=positions) as run:
        logits = chat.model(**inputs).logits
    family = TinyQwen25VL()
    family.placeholder = (chat.model.config.video_token_id,)
    expected = oracle_logits(family, chat.model, inputs, kept_by_layer(run), positions == "compact")
    wanted = expected[:, -1]
    torch.testing.assert_close(logits[:, -1], wanted, atol=1e-4 * max(1, wanted.abs().max().item() / 10), rtol=0)


def test_clips_are_reproducible_and_show_what_they_say():
    for index in range(20):
        one, other = (CLIPS.draw(CLIPS.rng("test", index)) for _ in range(2))
        assert one.actors == other.actors
        assert np.array_equal(one.pixels, other.pixels)
        assert len({a.name for a in one.actors}) == len(one.actors)
        steps = [a.step for a in one.actors]
        assert steps == sorted(set(steps))
        assert one.pixels.shape == (FRAMES, 64, 64, 3)
        table = labels(one)
        for i, actor in enumerate(one.actors):
            own = one.owner == i
            assert not own[: actor.step].any()
            assert own[-1].any()
            assert set(table[actor.step][own[actor.step]][:, 3]) <= {EVENTS.index("appears")}
            if actor.later:
                shown = table[-1][own[-1]][:, 1]
                assert set(shown) == {list(COLOURS).index(actor.later)}
            start, end = np.array(actor.place(2 * actor.step + 1)), np.array(actor.place(FRAMES - 1))
            assert np.array_equal(np.sign(end - start), WAYS[actor.way])
        bright = one.pixels.mean((1, 2, 3)).reshape(STEPS, 2).mean(1)
        quiet = [s for s in range(STEPS) if s not in one.flashes]
        assert all(bright[s] > bright[quiet].max() + 20 for s in one.flashes)
    assert CLIPS.draw(CLIPS.rng("train", 0)).actors != CLIPS.draw(CLIPS.rng("test", 0)).actors


def test_questions_fit_and_answers_are_right():
    tokenizer, words = CLIPS.make_tokenizer(), set(vocabulary())
    for index in range(60):
        rng = CLIPS.rng("train", index)
        clip = CLIPS.draw(rng)
        for ask in ASK.values():
            question = ask(rng, clip)
            if question is not None:
                assert set(question.text.split()) | set(question.answer.split()) <= words
                assert len(question.text.split()) + len(question.answer.split()) + 2 <= CLIPS.lengths[0]
                assert is_right(question, question.answer)
                assert not is_right(question, "")
                ids = tokenizer(question.text)["input_ids"]
                assert ids == tokenizer.convert_tokens_to_ids(question.text.split())
    late = Question("when", "", "t7")
    assert [is_right(late, said) for said in ("t6", "t8", "t9", "seven")] == [True, True, False, False]


@pytest.mark.parametrize("prompt", PROMPTS, ids=["video", "late", "all frames", "half of the frames"])
def test_training_sees_what_inference_sees(prompt, monkeypatch):
    """Batched encoder and packed questions against the library's own model and image processor."""
    torch.manual_seed(0)
    tokenizer = CLIPS.make_tokenizer()
    model = CLIPS.make_model(len(tokenizer)).eval()
    monkeypatch.setattr(type(CLIPS), "share", lambda self, rng: prompt)
    batch = Batches(CLIPS, tokenizer, "train", 2).batch(0)
    (pack,) = batch.packs
    assert pack.ids.shape == (2, len(CLIPS.pack), CLIPS.lengths[0])
    clip = CLIPS.draw(CLIPS.rng("train", 0))
    made = make_image_processor()(images=clip.images, return_tensors="pt")["pixel_values"].view(FRAMES, 64, 3, 2, 64)
    frames = made[:, :, :, 0].unflatten(0, (STEPS, 2)).movedim(1, 3).flatten(2)
    torch.testing.assert_close(frames, patches(clip.pixels), atol=1e-5, rtol=0)
    pixels, text = batch.pixels.float(), model.model.language_model
    steps, count = pixels.shape[1], prompt.pictures or 1
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>" if prompt.pictures else "<|video_pad|>")
    grids = torch.tensor([[steps // count, 8, 8]] * count)

    def ids_of(*words):
        return torch.tensor(tokenizer.convert_tokens_to_ids(list(words)), dtype=torch.long)

    with torch.no_grad():
        features = encode(model.model.visual, pixels.flatten(0, 1)).unflatten(0, (2, -1))
        own = model.model.visual(pixels[0].flatten(0, 1), grids).pooler_output
        torch.testing.assert_close(features[0].flatten(0, 1), own, atol=1e-5, rtol=0)
        start, gap, end = (
            text.embed_tokens(ids_of(*p)).expand(2, -1, -1) for p in (CLIPS.head, CLIPS.between(prompt), CLIPS.tail)
        )
        prefix = torch.cat([start, join(features, gap), end], dim=1)
        hidden = packed_hidden(text, prefix, [pack.ids], CLIPS.rope(model, batch.pixels, prompt))[0]
        asked = int((pack.weight[1, 3] > 0).nonzero()[0])
        one = torch.cat([ids_of("<|vision_start|>"), torch.full((256 // STEPS,), pad), ids_of("<|vision_end|>")])
        media = one.repeat(count) if prompt.pictures else torch.cat([one[:1], one[1:-1].repeat(STEPS), one[-1:]])
        ids = torch.cat([ids_of("<s>", "<user>"), media, pack.ids[1, 3, :asked]])[None]
        rows = pixels[1].flatten(0, 1)
        named = {"image_grid_thw": grids} if prompt.pictures else {"video_grid_thw": grids}
        kind = 1 if prompt.pictures else 2
        named |= {} if prompt.pictures else {"second_per_grid_ts": torch.tensor([0.25])}
        named["mm_token_type_ids"] = kind * (ids == pad).int()
        places, _ = model.model.get_rope_index(ids, **named)
        if prompt.late:  # the other engines' rule: behind the last of all places
            places[..., -asked - 1 :] += STEPS - 4
        shown = {"pixel_values" if prompt.pictures else "pixel_values_videos": rows}
        alone = model(input_ids=ids, position_ids=places, **shown, **named).logits[0, -1]
        torch.testing.assert_close(model.lm_head(hidden[1, 3, asked - 1]), alone, atol=1e-4, rtol=0)
