"""Conversations side by side, and answers while they grow."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import skimage
import torch
from PIL import Image

from tests.tiny.saved import PROCESSORS, save
from tokenprune import BadInput, Unsupported, load_video, prune, scenes
from tokenprune.chat import Chat

PHOTOS = [Path(skimage.__file__).parent / "data" / f"{name}.png" for name in ("astronaut", "coffee")]


def turn(question, *images):
    content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def answers(chat, conversations):
    inputs = chat.batch(conversations)
    with torch.inference_mode():
        ids = chat.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return ids[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_batch_answers_like_its_rows(tmp_path, name):
    save(name, tmp_path)
    chat = Chat.load(tmp_path)
    photos = [Image.open(path).convert("RGB") for path in PHOTOS]
    asked = [turn("what is in the picture ?", photos[0]), turn("what ?", photos[1])]
    if name not in ("gemma3", "paligemma"):
        asked.append(turn("is the picture in the picture ?", *photos))
    with prune(chat.model, "divprune", keep=0.5):
        assert answers(chat, asked) == [answers(chat, [one])[0] for one in asked]


def test_clips_side_by_side():
    chat = Chat.load("scenes-video")
    clip = load_video(scenes.VIDEO)
    content = [{"type": "video", "video": clip}, {"type": "text", "text": scenes.VIDEO_QUESTION}]
    inputs = chat.batch([[{"role": "user", "content": content}]] * 2)
    assert inputs["input_ids"].shape[0] == 2
    assert torch.equal(inputs["input_ids"][0], chat.inputs(clip, scenes.VIDEO_QUESTION)["input_ids"][0])


def test_streamed_answers_grow_to_the_whole():
    chat = Chat.load("scenes")
    inputs = chat.inputs(Image.open(scenes.IMAGE), "describe the image .")
    pieces = list(chat.stream(inputs, 20))
    assert len(pieces) > 3
    assert all(later.startswith(earlier) for earlier, later in pairwise(pieces))
    assert pieces[-1] == chat.answer(inputs, 20)[0]


def test_a_streamed_answer_that_fails_says_why():
    chat = Chat.load("scenes")
    inputs = chat.inputs(Image.open(scenes.IMAGE), scenes.QUESTION)
    embeds = chat.model.get_input_embeddings()(inputs["input_ids"])
    with prune(chat.model, "divprune", keep=0.5), pytest.raises(Unsupported, match="input_ids"):
        list(chat.stream({"inputs_embeds": embeds, "pixel_values": inputs["pixel_values"]}, 4))


def test_an_abandoned_stream_leaves_nothing_running():
    chat = Chat.load("scenes")
    inputs = chat.inputs(Image.open(scenes.IMAGE), "describe the image .")
    with prune(chat.model, "divprune", keep=0.5):
        stream = chat.stream(inputs, 20)
        next(stream)
        stream.close()
    assert chat.answer(inputs, 20)[0].count(",") == 4


def test_a_missing_folder():
    with pytest.raises(BadInput, match="no model folder"):
        Chat.load("./nowhere")


def test_a_prompt_of_more_positions_than_the_model_has():
    """Refused before anything runs, with the numbers; one token fewer is answered."""
    chat = Chat.load("scenes")
    picture = Image.open(scenes.IMAGE)
    frame = chat.inputs(picture, "red")["input_ids"].shape[1] - 1
    most = chat.model.config.text_config.max_position_embeddings - frame
    assert chat.inputs(picture, "red " * most)["input_ids"].shape == (1, 1024)
    with pytest.raises(
        BadInput, match=r"takes 1025 positions \(881 tokens of text and 144 visual ones\), but the model"
    ):
        chat.inputs(picture, "red " * (most + 1))
    with pytest.raises(BadInput, match=r"takes 1025 positions.*has 1024\. Ask a shorter question\."):
        chat.batch([turn("what is red ?", picture), turn("red " * (most + 1), picture)])


def test_positions_of_pictures_with_several_axes(monkeypatch):
    """Tokens of a video share positions under M-RoPE, so more tokens than positions are no reason to refuse."""
    chat = Chat.load("scenes-video")
    clip = load_video(scenes.VIDEO)
    tokens = chat.inputs(clip, "red")["input_ids"].shape[1]
    monkeypatch.setattr(chat.model.config.text_config, "max_position_embeddings", tokens - 100)
    chat.inputs(clip, "red")
    with pytest.raises(BadInput, match=rf"and 256 visual ones\), but the model has {tokens - 100}\. Ask a shorter"):
        chat.inputs(clip, "red " * tokens)
    monkeypatch.setattr(chat.model.config.text_config, "max_position_embeddings", 12)
    with pytest.raises(BadInput, match="Show a smaller picture or fewer frames"):
        chat.inputs(clip, "red")
