"""A conversation over a stream of frames: exact while nothing is thinned, right after it, flat in memory."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import FAMILIES
from tests.tiny.saved import WORDS, llava
from tokenprune import BadInput, Unsupported, prune, scenes, stream
from tokenprune.chat import Chat
from tokenprune.engine.memory import Memory
from tokenprune.engine.rotate import rotate
from tokenprune.engine.stream import Stream
from tokenprune.methods.evs import EVS

QUESTION = "what is in the picture ?"
TOKENS = 36


@pytest.fixture(scope="module")
def talker():
    """A tiny LLaVA that speaks the words of its processor, and nothing else."""
    model, processor = FAMILIES["llava"].build(), llava()
    words = torch.full((model.config.text_config.vocab_size,), -1e4)
    words[processor.tokenizer.convert_tokens_to_ids(WORDS)] = 0
    head = torch.nn.Linear(*model.lm_head.weight.shape[::-1])
    head.weight, head.bias = model.lm_head.weight, torch.nn.Parameter(words)
    model.lm_head = head
    model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    model.generation_config.eos_token_id = None
    return model, processor


@pytest.fixture(scope="module")
def qwen():
    chat = Chat.load(scenes.VIDEO_MODEL)
    return chat.model, chat.processor


def pictures(count, side=24):
    made = np.random.default_rng(0)
    return [Image.fromarray(made.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


def said(model, processor, frames, question, tokens):
    """The same conversation as one prompt."""
    content = [{"type": "image"}] * len(frames) + [{"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(images=frames, text=text, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :].tolist(), skip_special_tokens=True).strip()


@pytest.mark.parametrize("which", ["talker", "qwen"])
def test_nothing_thinned_is_one_prompt(which, request):
    model, processor = request.getfixturevalue(which)
    talk = stream(model, processor, budget=10_000)
    frames = pictures(4, 64 if which == "qwen" else 24)
    for frame in frames:
        talk.see(frame)
    question = QUESTION if which == "talker" else "what appears first ?"
    assert talk.ask(question, 6, remember=False) == said(model, processor, frames, question, 6)
    report = talk.report()
    talk.ask(question, 3, remember=False)
    assert talk.report() == report
    assert all(layer.keys.shape[2] == report.rows for layer in talk._memory.cache.layers)


def test_it_goes_on_after_an_answer(talker):
    """Two turns with a frame in each are what the whole conversation in one prompt gives."""
    model, processor = talker
    one, two = pictures(2)
    talk = stream(model, processor, budget=10_000)
    talk.see(one)
    answer = talk.ask(QUESTION, 3)
    talk.see(two)
    found = talk.ask(QUESTION, 4)
    user = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    reply = [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    text = processor.apply_chat_template([*user, *reply, *user], add_generation_prompt=True, tokenize=False)
    inputs = processor(images=[one, two], text=text, return_tensors="pt")
    assert inputs["input_ids"].shape[1] + 3 == talk.report().rows
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert processor.decode(ids[0, -4:].tolist(), skip_special_tokens=True).strip() == found


@pytest.mark.parametrize("method", ["evs", "vidcom2", "dycoke", "divprune", "uniform", "random"])
def test_the_budget_holds(talker, method):
    model, processor = talker
    talk = stream(model, processor, method, budget=150, recent=1)
    for number, frame in enumerate(pictures(12), 1):
        talk.see(frame)
        report = talk.report()
        assert report.visual_tokens <= 150
        memory = talk._memory
        assert report.rows == len(memory.frame) == memory.cache.layers[0].keys.shape[2]
        assert int((memory.frame == number - 1).sum()) >= TOKENS  # the newest is whole
    assert report.thinnings > 1
    assert (report.frames, report.frames_left) == (12, len(memory.frame[memory.cell >= 0].unique()))
    assert talk.ask(QUESTION, 3)


def oracle(model, ids, pixels, seen):
    """Logits of the whole unthinned sequence, in which each row sees what was left when it came: `seen` [L, L]."""
    mask = torch.zeros(1, 1, *seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    layers = model.model.language_model.layers
    handles = [
        layer.register_forward_pre_hook(lambda m, a, k: (a, k | {"attention_mask": mask}), with_kwargs=True)
        for layer in layers
    ]
    try:
        with torch.inference_mode():
            return model(input_ids=ids, pixel_values=pixels, use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def test_every_later_token_sees_what_was_left(talker, monkeypatch):
    """Law 3 for streams: original positions against the whole sequence with a mask that grows with each thinning, and
    with each turn that is forgotten."""
    model, processor = talker
    frames = pictures(6)
    talk = stream(model, processor, "evs", budget=100, positions="original", slack=0.0, remember=1)
    columns = torch.empty(0, dtype=torch.long)  # column of the whole sequence for each row of the cache
    seen, total, logits, whole = [], 0, [], []
    read, leave = Stream._read, Memory.leave

    def note(talk, memory, inputs, frame, turn):
        nonlocal columns, total
        new = [row.token for row in memory.unread] + inputs["input_ids"][0].tolist()
        own = torch.arange(total, total + len(new))
        whole.extend(new)
        for column in own:
            seen.append((column, torch.cat([columns, own[own <= column]])))
        columns, total = torch.cat([columns, own]), total + len(new)
        logits.append(read(talk, memory, inputs, frame, turn))
        return logits[-1]

    def drop(memory, alive, first, text_model):
        nonlocal columns
        columns = columns[memory.left(alive, first)]
        leave(memory, alive, first, text_model)

    monkeypatch.setattr(Stream, "_read", note)
    monkeypatch.setattr(Memory, "leave", drop)
    for frame in frames:
        talk.see(frame)
        talk.ask(QUESTION, 2)
    assert talk.report().turns == 1
    pixels = processor(images=frames, text="<image>" * 6, return_tensors="pt")["pixel_values"]
    mask = torch.zeros(total, total, dtype=torch.bool)
    for column, others in seen:
        mask[column, others] = True
    assert not mask[-1].all()
    expected = oracle(model, torch.tensor([whole]), pixels, mask)
    torch.testing.assert_close(logits[-1], expected[-1], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[-2], expected[-2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("which", ["talker", "qwen"])
def test_renumbering_turns_the_keys(which, request):
    """After a thinning the keys are those of the same rows at their new positions, and positions have no gaps."""
    model, processor = request.getfixturevalue(which)
    side, size = (64, 16) if which == "qwen" else (24, TOKENS)
    both = [Stream(model, processor, EVS(), budget=3 * size, positions=p) for p in ("compact", "original")]
    for frame in pictures(4, side):
        for talk in both:
            talk.see(frame)
    compact, original = (talk._memory for talk in both)
    assert torch.equal(compact.frame, original.frame)
    assert compact.next < original.next
    old = original.frame < 3
    for a, b in zip(compact.cache.layers[:1], original.cache.layers[:1], strict=True):
        turned = rotate(both[0].text_model, b.keys, compact.positions - original.positions)
        torch.testing.assert_close(a.keys[:, :, old], turned[:, :, old], atol=1e-4, rtol=0)
    if which == "talker":
        assert compact.positions[0].tolist() == list(range(len(compact.frame)))


def test_original_positions_run_out(talker, monkeypatch):
    model, processor = talker
    monkeypatch.setattr(model.model.language_model.config, "max_position_embeddings", 130)
    talk = stream(model, processor, budget=80, positions="original")
    first, *more = pictures(4)
    for frame in (first, *more[:2]):
        talk.see(frame)
    with pytest.raises(BadInput, match="positions='compact'"):
        talk.see(more[2])


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.nightly)])
def test_thousands_of_frames(talker, count):
    """Soak: rows, bytes and the process's memory stay flat."""
    model, processor = talker
    talk = stream(model, processor, "uniform", budget=90, slack=0.3)
    frames = pictures(8)
    peak = {}
    for number in range(count):
        talk.see(frames[number % 8])
        if number % 100 == 50:
            talk.ask(QUESTION, 1, remember=False)
        if number in (200, count - 1):
            report = talk.report()
            peak[number] = (report.rows, report.next_position, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    report = talk.report()
    assert report.frames == count
    assert report.thinnings > count / 4
    assert max(rows for rows, _, _ in peak.values()) < 90 + 20
    assert report.next_position < 90 + 20
    assert peak[count - 1][2] - peak[200][2] < 20_000  # KiB


def test_what_cannot_stream_is_refused(talker, tiny_models):
    model, processor = talker
    for method, match in (("fastv", "reads attention_row"), ("fastvid", "reads saliency"), ("tome", "merges")):
        with pytest.raises(BadInput, match=match):
            stream(model, processor, method)
    with pytest.raises(BadInput, match="budget must be 1"):
        stream(model, processor, budget=0)
    with pytest.raises(BadInput, match="positions"):
        stream(model, processor, positions="new")
    with pytest.raises(Unsupported, match="Hunyuan-VL numbers the rows and columns of every picture from 0"):
        stream(FAMILIES["hunyuan_vl"].build(), None, "uniform", budget=8)
    with pytest.raises(Unsupported, match=r"ERNIE 4\.5 VL has experts for visual tokens"):
        stream(FAMILIES["ernie4_5_vl_moe"].build(), None, "uniform", budget=8)
    for family in ("gemma3", "paligemma"):
        with pytest.raises(Unsupported, match=r"sliding windows|both directions"):
            stream(tiny_models(FAMILIES[family]), processor)
    talk = stream(model, processor, budget=50)
    with pytest.raises(BadInput, match="No frame"):
        talk.ask(QUESTION)
    with pytest.raises(BadInput, match="PIL image"):
        talk.see("frame.png")
    talk.see(pictures(1)[0])
    with pytest.raises(BadInput, match="does not hold"):
        talk.see(pictures(1)[0])
    with prune(model, "uniform", keep=0.5):
        pass  # a stream leaves nothing on the model
