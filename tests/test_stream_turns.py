"""Questions and answers of a stream: forgotten whole, oldest first, and what is left is a conversation again."""

from __future__ import annotations

import random

import pytest
import torch

from tests.draw import cases
from tests.talk_oracle import Shown, fresh
from tests.tiny import FAMILIES, IMAGE, Picture
from tests.tiny.talk import ASSISTANT, BOS, END, START, STOP, USER, frame, talking
from tokenprune import BadInput, Unsupported, stream
from tokenprune.engine.template import Template

WINDOWS = ("gemma3", "paligemma2", "mistral3", "aya_vision", "cohere2_vision", "exaone4_5")
REFUSED = (*WINDOWS, "paligemma", "hunyuan_vl", "ernie4_5_vl_moe")  # images that see both ways; positions; experts
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
                left = memory.cell[(memory.frame == number) & (memory.cell >= 0)].tolist()
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
        pieces, config = self.pieces(), self.model.config.get_text_config()
        limit, config.max_position_embeddings = config.max_position_embeddings, 10_000  # nothing has to go for it
        question, said = self.ask(words, 2, remember=False)
        config.max_position_embeddings = limit
        logits = self.logits[:]
        asked = fresh(self.model, self.processor, [*pieces, [*question, ASSISTANT]])
        then = fresh(self.model, self.processor, [*pieces, [*question, ASSISTANT, said[0]]])
        for found, expected in zip(logits, (asked, then), strict=True):
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
        assert [int(asked.argmax()), int(then.argmax())] == said


def axes(family, *_):
    return "three axes" if family.startswith(("qwen", "glm")) else "one axis"


@cases("family", STREAMING, axes)
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


@cases("family, limit", [(family, limit) for family in ("llava", "qwen2_5_vl") for limit in (160, None)], axes)
def test_hundreds_of_questions(family, limit):
    """Soak: positions, rows and bytes stay flat however much is asked and seen, and it still knows what is left."""
    talk = Talk(family, limit, layers=1, method="uniform", budget=120, slack=0.3, remember=3)
    talk.see()
    made, found = random.Random(2), []
    for number in range(250):
        talk.see() if made.random() < 0.15 else talk.ask(made.choice((1, 4, 30)), made.choice((1, 3)))
        report = talk.stream.report()
        assert report.visual_tokens <= 120
        assert report.turns <= 3
        assert report.kv_bytes == 2 * 2 * 16 * 4 * report.rows  # keys and values, heads, width, float32
        found.append((report.next_position, report.rows))
        if number % 60 == 59:
            talk.check()
    assert sum(not isinstance(event, Picture) for event in talk.events) >= 200
    early, late = ([max(values) for values in zip(*part, strict=True)] for part in (found[:125], found[125:]))
    assert all(b <= 1.2 * a for a, b in zip(early, late, strict=True))
    assert max(position for position, _ in found) <= (limit or 3 * 120 + 4 * 36)


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


def test_a_question_that_has_no_room_is_refused_before_anything_runs():
    talk = Talk("llava", limit=128, budget=1000, remember=4)
    talk.see()
    talk.see()
    before, ran = talk.stream.report(), len(talk.logits)
    for words, answer, match in ((2000, 2, "2001 tokens"), (2, 500, "an answer of up to 500"), (87, 2, "room for 88")):
        with pytest.raises(BadInput, match=match):
            talk.ask(words, answer)
    assert talk.stream.report() == before
    assert len(talk.logits) == 0 != ran
    talk.check()
    talk.ask(86, 2)  # just fits
    talk.check()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_what_comes_in_takes_the_place_of_its_own_kind(family):
    """Few positions: a question makes the model forget turns before frames, a frame thins frames before it forgets."""
    talk = Talk(family, limit=120, layers=1, budget=1000, remember=50, method="uniform")
    talk.see()
    talk.see()
    while talk.stream.report().turns == sum(not isinstance(event, Picture) for event in talk.events):
        talk.ask(12, 2)
    talk.check()
    report = talk.stream.report()
    assert report.thinnings == 0
    assert report.turns > 1
    while talk.stream.report().thinnings == 0:
        talk.see()
    talk.check()
    assert talk.stream.report().turns == report.turns
    talk.ask(40, 10)  # frames have to go, since it takes more than all turns did
    talk.check()
    for _ in range(3):
        talk.see()
        talk.ask(5, 2)
        talk.check()
    assert talk.stream.report().next_position <= 120


def test_a_word_for_an_image_is_no_question():
    talk = Talk("llava", budget=100)
    talk.see()
    before = talk.stream.report()
    for question, match in ((f"w5 w{IMAGE}", "stands for an image"), ("  ", "must be words"), (7, "must be words")):
        with pytest.raises(BadInput, match=match):
            talk.stream.ask(question)
    for tokens in (0, -1, 1.5, True, None):
        with pytest.raises(BadInput, match="max_new_tokens"):
            talk.stream.ask("w5", tokens)
    with pytest.raises(BadInput, match="takes a number"):
        talk.stream.ask("w5", 2, remember=3)
    assert talk.stream.report() == before


def test_options_out_of_range():
    for name, values in (
        ("remember", (-1, True, 1.5, "3")),
        ("recent", (-1, 0.5)),
        ("budget", (0, 1.0)),
        ("slack", (1, -0.1)),
    ):
        for value in values:
            with pytest.raises(BadInput, match=f"The {name} must be"):
                Talk("llava", **{"budget": 100, name: value})


class Written:
    """A processor that is nothing but a chat template: a function of the parts of each turn."""

    image_token, chat_template = "<i>", "yes"

    def __init__(self, user, assistant, start="", system=""):
        self.user, self.assistant, self.start, self.system = user, assistant, start, system

    def apply_chat_template(self, turns, add_generation_prompt, tokenize):
        text = self.start
        for turn in turns:
            parts = turn["content"]
            images, words = sum(p["type"] == "image" for p in parts), "".join(p.get("text", "") for p in parts)
            text += self.user(images, words) if turn["role"] == "user" else self.assistant + words + self.system
        return text + self.assistant


TEMPLATES = {
    "marks": Written(lambda n, words: "<u>" + "<v><i></v>" * n + words + "</u>", "<a>", "<s>", "</a>"),
    "lines": Written(lambda n, words: "USER: " + "<i>\n" * n + words + " ", "ASSISTANT: ", "", "</s>"),
    "line before the words": Written(lambda n, words: "<u> " + "<i>" * n + "\n" + words + "</u>", "<a>\n", "", "</a>"),
    "space without images": Written(lambda n, words: ("User:" if n else "User: ") + "<i>" * n + words + "\n", "Bot:"),
    "brackets": Written(lambda n, words: "[INST]" + "<i>" * n + words + "[/INST]", "", "<s>", "</s>"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_pieces_of_a_template_make_it_up(name):
    processor = TEMPLATES[name]
    t = Template.of(processor)
    image, text = {"type": "image"}, {"type": "text", "text": "why"}
    said = {"role": "assistant", "content": [{"type": "text", "text": "so"}]}

    def whole(*asked):
        turns = [{"role": "user", "content": content} for content in asked]
        return processor.apply_chat_template([x for turn in turns for x in (turn, said)][:-1], True, False)

    shown = f"{t.open}<i>{t.close}"
    one, again = f"{t.lead}why{t.prompt}", f"so{t.end}"
    assert whole([image, text]) == t.head + shown + one
    assert whole([image, image, text]) == t.head + shown + shown + one
    assert whole([image, text], [image, image, text]) == t.head + shown + one + again + shown + shown + one
    assert whole([image, text], [text]) == t.head + shown + one + again + f"{t.bare}why{t.prompt}"


def test_a_template_that_turns_cannot_be_taken_out_of():
    numbered = Written(lambda n, words: "<u>" + "".join(f"Picture {i}: <i>" for i in range(n)) + words, "<a>")
    with pytest.raises(Unsupported, match="between two images"):
        Template.of(numbered)
    numbered.chat_template = None
    with pytest.raises(BadInput, match="chat template"):
        Template.of(numbered)
