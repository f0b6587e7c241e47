"""A stream after errors, on a pruned model, closed, beside other streams and in threads."""

from __future__ import annotations

import gc
import threading
import weakref
from itertools import count

import pytest
import torch

from tests.tiny import FAMILIES
from tests.tiny.talk import frame, talking
from tokenprune import BadInput, Unsupported, prune, stream
from tokenprune.engine.memory import Memory
from tokenprune.engine.stream import Stream
from tokenprune.methods.uniform import Uniform

OPTIONS = {"budget": 90, "remember": 1, "slack": 0.0}  # llava: two frames of 36


@pytest.fixture
def model_and_processor():
    return talking("llava", layers=2)


def begun(model, processor, **options):
    """A stream in which the next frame thins and the next question forgets."""
    talk = stream(model, processor, "uniform", **OPTIONS | options)
    for number in range(2):
        talk.see(frame(number))
    talk.ask("w20 w21", 2)
    return talk


def see(talk):
    talk.see(frame(2))


def ask(talk):
    return talk.ask("w30 w31", 3)


def ask_in_passing(talk):
    return talk.ask("w30 w31", 3, remember=False)


def state(talk):
    """Every bit of what a stream holds."""
    memory = talk._memory
    kept = [x.clone() for layer in memory.cache.layers for x in (layer.keys, layer.values)]
    return talk.report(), memory.unread, [memory.positions.clone(), memory.features.clone(), *kept]


def assert_same(talk, before):
    report, unread, tensors = before
    now = state(talk)
    assert now[:2] == (report, unread)
    assert all(torch.equal(a, b) for a, b in zip(tensors, now[2], strict=True))


def hooks(model):
    names = ("_forward_hooks", "_forward_pre_hooks")
    return sum(len(getattr(module, name)) for module in model.modules() for name in names)


class Trap:
    """Raises at the n-th call of any module that computes on its own."""

    def __init__(self, model):
        self.model, self.at, self.error, self.calls = model, None, None, count()
        for module in model.modules():
            if not list(module.children()):
                module.register_forward_hook(self.passed)

    def passed(self, *_):
        if next(self.calls) == self.at:
            raise self.error

    def set(self, at, error):
        self.at, self.error, self.calls = at, error, count()


@pytest.mark.parametrize("call", [see, ask, ask_in_passing])
@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_an_error_anywhere_in_the_model_changes_nothing(model_and_processor, call, error):
    model, processor = model_and_processor
    talk, control = begun(model, processor), begun(model, processor)
    trap = Trap(model)
    call(control)
    passes, before, present = next(trap.calls), state(talk), hooks(model)
    assert passes > 20
    for at in range(0, passes, 3):
        trap.set(at, error)
        with pytest.raises(type(error)):
            call(talk)
        assert_same(talk, before)
    trap.set(None, None)
    assert hooks(model) == present
    untouched = begun(model, processor)
    assert [call(talk), ask(talk)] == [call(untouched), ask(untouched)]


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Memory, "add"), (Memory, "leave"), (Uniform, "select"), (Stream, "_positions"), (Stream, "_make_room")],
)
@pytest.mark.parametrize("late", [False, True])
def test_an_error_beside_the_model_changes_nothing(model_and_processor, monkeypatch, owner, name, late):
    model, processor = model_and_processor
    talk, whole = begun(model, processor), getattr(owner, name)
    before = state(talk)

    def fails(*arguments, **named):
        if late:
            whole(*arguments, **named)
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        for call in (see,) if owner is Uniform else (see, ask):  # a question thins nothing
            with pytest.raises(RuntimeError, match="broken"):
                call(talk)
            assert_same(talk, before)
    see(talk)
    control = begun(model, processor)
    see(control)
    assert ask(talk) == ask(control)


@pytest.mark.parametrize("part", ["decode", "tokenizer", "__call__"])
def test_an_error_of_the_processor_changes_nothing(model_and_processor, monkeypatch, part):
    model, processor = model_and_processor
    talk = begun(model, processor)
    before = state(talk)

    def fails(*_, **__):
        raise OSError("no file")

    with monkeypatch.context() as patch:
        patch.setattr(type(processor), part, fails)
        with pytest.raises(OSError, match="no file"):
            (see if part == "__call__" else ask)(talk)
    assert_same(talk, before)
    assert ask(talk) == ask(begun(model, processor))


@pytest.mark.parametrize("bad", ["frame.png", None, 7, torch.zeros(3, 4, 4), [frame(1)]])
def test_what_is_no_frame_changes_nothing(model_and_processor, bad):
    talk = begun(*model_and_processor)
    before = state(talk)
    with pytest.raises(BadInput, match="PIL image"):
        talk.see(bad)
    assert_same(talk, before)
    see(talk)


def test_a_frame_that_the_processor_refuses(model_and_processor, monkeypatch):
    model, processor = model_and_processor
    talk = begun(model, processor)
    before = state(talk)

    def refuses(*_, **__):
        raise ValueError("absolute aspect ratio must be smaller than 200")

    with monkeypatch.context() as patch:
        patch.setattr(type(processor), "__call__", refuses)
        with pytest.raises(BadInput, match="4 x 3, mode I: absolute aspect ratio"):
            see(talk)
    with pytest.raises(BadInput, match="0 x 3 pixels"):
        talk.see(frame(1, 3, 0))
    assert_same(talk, before)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize(
    ("method", "options"), [("uniform", {"keep": 0.5}), ("fastv", {"keep": 0.5}), ("dycoke_kv", {})]
)
def test_a_pruned_model_is_refused_and_the_stream_goes_on(family, method, options):
    model, processor = talking(family, layers=4)
    talk, control = begun(model, processor), begun(model, processor)
    before = state(talk)
    with prune(model, method, **options) as run:
        for call in (see, ask, ask_in_passing, see):
            with pytest.raises(Unsupported, match=r"Call remove\(\) on the run"):
                call(talk)
        assert_same(talk, before)
        fresh = stream(model, processor, **OPTIONS)
        with pytest.raises(Unsupported, match="is pruned"):
            see(fresh)
        with run.lift():
            see(talk)
    see(control)
    see(fresh)
    assert ask(talk) == ask(control)
    assert ask(fresh)


@pytest.mark.parametrize("call", [see, ask])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_model_that_is_pruned_while_it_reads(model_and_processor, call, layer):
    """Another thread may do so; here a hook does."""
    model, processor = model_and_processor
    talk = begun(model, processor)
    before, runs = state(talk), []

    def attach(module, args):
        if not runs:
            runs.append(prune(model, "uniform", keep=0.5))

    hook = model.model.language_model.layers[layer].register_forward_pre_hook(attach)
    with pytest.raises(Unsupported, match="is pruned"):
        call(talk)
    hook.remove()
    runs[0].remove()
    assert_same(talk, before)
    assert call(talk) == call(begun(model, processor))


def test_two_streams_on_one_model_do_not_meet(model_and_processor):
    model, processor = model_and_processor
    one, two = begun(model, processor), stream(model, processor, "evs", budget=500)
    two.see(frame(7))
    see(one)
    first = two.ask("w50", 3)
    answer = ask(one)
    two.see(frame(8))
    second = two.ask("w51", 3)

    alone = begun(model, processor)
    see(alone)
    assert ask(alone) == answer
    other = stream(model, processor, "evs", budget=500)
    other.see(frame(7))
    assert other.ask("w50", 3) == first
    other.see(frame(8))
    assert other.ask("w51", 3) == second


def test_closed(model_and_processor):
    model, processor = model_and_processor
    with begun(model, processor) as talk:
        kept, other = weakref.ref(talk._memory.cache.layers[0].keys), begun(model, processor)
    gc.collect()
    assert kept() is None
    talk.close()
    for use in (see, ask, Stream.report, Stream.reset, lambda talk: talk.visual_tokens):
        with pytest.raises(BadInput, match="is closed"):
            use(talk)
    talk.close()
    see(other)
    assert ask(other)


def test_an_error_in_a_with_block_closes_too(model_and_processor):
    with pytest.raises(ZeroDivisionError), begun(*model_and_processor) as talk:
        raise ZeroDivisionError
    with pytest.raises(BadInput, match="is closed"):
        see(talk)


def together(*jobs):
    """Run jobs in threads that start at once; what they return."""
    found, gate = [None] * len(jobs), threading.Barrier(len(jobs))

    def work(place, job):
        gate.wait()
        found[place] = job()

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


def spoken(model, processor, first):
    talk = stream(model, processor, "uniform", **OPTIONS)
    said = []
    for number in range(first, first + 4):
        talk.see(frame(number))
        said.append(talk.ask(f"w{number}", 3))
    return said, talk.report()


def test_streams_in_threads_share_a_model(model_and_processor):
    expected = [spoken(*model_and_processor, first) for first in (10, 20, 30)]
    assert together(*(lambda first=first: spoken(*model_and_processor, first) for first in (10, 20, 30))) == expected


def test_threads_share_a_stream(model_and_processor):
    """Each call is whole; one that fails holds up no other."""
    talk = stream(*model_and_processor, "uniform", **OPTIONS | {"remember": 50})
    talk.see(frame(0))

    def watch():
        for number in range(1, 6):
            talk.see(frame(number))
            with pytest.raises(BadInput):
                talk.see("no frame")

    def wonder():
        return [talk.ask("w20", 2) for _ in range(5)]

    together(watch, wonder, watch)
    report = talk.report()
    assert (report.frames, report.turns) == (11, 5)
    assert report.rows == len(talk._memory.frame) == report.next_position


def test_another_thread_may_use_the_model_meanwhile(model_and_processor):
    """What a stream hears of the model is its own thread's."""
    model, processor = model_and_processor
    expected = spoken(model, processor, 40)
    prompt = FAMILIES["llava"].inputs([[5]])

    def others():
        with torch.inference_mode():
            for _ in range(60):
                model(**prompt)

    assert together(lambda: spoken(model, processor, 40), others)[0] == expected
