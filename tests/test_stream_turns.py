"""Questions and answers of a stream: forgotten whole, oldest first, and what is left is a conversation again."""

from __future__ import annotations

import random

import pytest
import torch

from tests.talk_oracle import Shown, fresh
from tests.tiny import FAMILIES, IMAGE, Picture
from tests.tiny.talk import ASSISTANT, BOS, END, START, STOP, USER, frame, talking
from tokenprune import Unsupported, stream

REFUSED = ("gemma3", "paligemma", "paligemma2", "mistral3")  # sliding windows, images that see both ways
UNTURNED = ("glm4v", "glm46v")  # their keys are rotated pair by pair
STREAMING = [name for name in FAMILIES if name not in (*REFUSED, *UNTURNED)]
SIZES = [(3, 4), (4, 3)]


class Talk:
    """A stream, and a record of what was said to it."""

    def __init__(self, family, limit=None, frames=None, layer=-1, layers=None, **options):
        """frames: whole ones that the budget holds; limit: positions that the model has."""
        self.model, self.processor = talking(family, layer, layers)
        if limit is not None:
            self.model.config.get_text_config().max_position_embeddings = limit
        if frames is not None:
            most = max(self.processor.ids(Picture(*size)).count(IMAGE) for size in SIZES)
            options["budget"] = int(frames * most)
        self.budget = options["budget"]
        self.stream = stream(self.model, self.processor, **options)
        self.made = random.Random(0)
        self.events, self.logits = [], []
        self.model.register_forward_hook(lambda module, args, out: self.logits.append(out.logits[0, -1]))

    def see(self):
        number = sum(isinstance(event, Picture) for event in self.events)
        size = SIZES[number % 2]
        self.stream.see(frame(number, *size))
        self.events.append(Picture(*size))

    def ask(self, words=3, answer=2, **options):
        question = [self.made.randrange(10, 80) for _ in range(words)]
        self.logits.clear()
        said = self.stream.ask(" ".join(f"w{token}" for token in question), answer, **options)
        said = [int(word[1:]) for word in said.split()]
        assert len(said) == answer
        if options.get("remember", True):
            self.events.append((question, said))
        return question, said

    def pieces(self):
        """The conversation, of what is remembered."""
        memory = self.stream._memory
        marked = self.processor.marked
        turns = [event for event in self.events if not isinstance(event, Picture)]
        forgotten, number, found = len(turns) - self.stream.report().turns, -1, [[BOS, USER]]
        for event in self.events:
            if isinstance(event, Picture):
                number += 1
                left = memory.place[(memory.frame == number) & (memory.place >= 0)].tolist()
                if left:
                    around = ([START], [END]) if marked else ([], [])
                    found += [around[0], Shown(event, number, left), around[1]]
            elif forgotten:
                forgotten -= 1
            else:
                found.append([*event[0], ASSISTANT, *event[1], STOP, USER])
        return [piece for piece in found if piece]

    def check(self, words=3):
        """What the stream says next is what the model says afresh."""
        pieces = self.pieces()
        question, said = self.ask(words, 2, remember=False)
        logits = self.logits[:]
        asked = fresh(self.model, self.processor, [*pieces, [*question, ASSISTANT]])
        then = fresh(self.model, self.processor, [*pieces, [*question, ASSISTANT, said[0]]])
        for found, expected in zip(logits, (asked, then), strict=True):
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
        assert [int(asked.argmax()), int(then.argmax())] == said


@pytest.mark.parametrize("family", STREAMING)
def test_a_stream_is_the_model_on_what_it_remembers(family):
    """In any order of frames and questions, whatever has been thinned and forgotten by then."""
    talk = Talk(family, method="divprune", frames=3.5, slack=0.1, remember=2)
    talk.see()
    made = random.Random(1)
    for _ in range(14):
        talk.see() if made.random() < 0.6 else talk.ask(made.randrange(1, 6), made.randrange(1, 4))
    talk.check()
    talk.ask()
    talk.check()
    talk.see()
    talk.check()
    report = talk.stream.report()
    assert report.turns == 2
    assert report.thinnings > 0
    assert report.visual_tokens <= talk.budget


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_first_layer_keeps_to_it_too(family):
    talk = Talk(family, layer=0, method="uniform", budget=100, remember=1)
    for _ in range(6):
        talk.see()
        talk.ask()
    talk.check()


@pytest.mark.parametrize("family", UNTURNED)
def test_keys_that_cannot_be_turned_keep_their_positions(family):
    with pytest.raises(Unsupported, match="positions='original'"):
        Talk(family, budget=100)
    talk = Talk(family, budget=100, positions="original")
    for _ in range(3):
        talk.see()
        talk.ask()
    talk.check()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("limit", [160, None])
def test_hundreds_of_questions(family, limit):
    """Soak: positions, rows and bytes stay flat however much is asked and seen, and it still knows what is left."""
    talk = Talk(family, limit, layers=1, method="uniform", budget=120, slack=0.3, remember=3)
    talk.see()
    made, found = random.Random(2), []
    for number in range(400):
        talk.see() if made.random() < 0.2 else talk.ask(made.choice((1, 4, 30)), made.choice((1, 3)))
        report = talk.stream.report()
        assert report.visual_tokens <= 120
        assert report.turns <= 3
        assert report.kv_bytes == 2 * 2 * 16 * 4 * report.rows  # keys and values, heads, width, float32
        found.append((report.next_position, report.rows))
        if number % 100 == 99:
            talk.check()
    assert sum(not isinstance(event, Picture) for event in talk.events) > 250
    early, late = ([max(values) for values in zip(*part, strict=True)] for part in (found[:200], found[200:]))
    assert all(b <= 1.05 * a for a, b in zip(early, late, strict=True))
    if limit:
        assert max(position for position, _ in found) <= limit


@pytest.mark.parametrize("remember", [0, 1, 3])
def test_how_many_turns_stay(remember):
    talk = Talk("llava", method="evs", budget=500, remember=remember)
    talk.see()
    rows = []
    for count in range(1, 6):
        talk.ask(4, 2)
        report = talk.stream.report()
        rows.append(report.rows)
        assert report.turns == min(count, remember)
        talk.check()
    assert len(set(rows[remember:])) == 1
