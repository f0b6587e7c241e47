"""Where the host waits for the device on the way through a pruned prompt: nowhere that is not named here.

Without a GPU the waiting itself cannot be seen, but what causes it can: operations whose result the host has to know,
and values that the host hands over in a blocking copy.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tokenprune
from tests.tiny import FAMILIES, Picture
from tokenprune.methods.base import places, signals_of
from tokenprune.methods.place import Vision, in_encoder
from tokenprune.methods.registry import all_methods, method_class
from tokenprune.signals.table import SIGNALS

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal"}
METHODS = ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
PACKAGE = Path(tokenprune.__file__).parent
ALWAYS = {
    "families/layout.py placeholder_columns": "where the images stand, once for each prompt",
    "families/qwen2_vl.py Qwen2VL.items": "how large they are, once for each prompt",
    "families/qwen2_vl.py Qwen2VL.pool_patches": "the same, where the encoder's attention is read",
    "families/llava_next.py LlavaNext._parts": "the same",
    "engine/select.py check_selection": "looks at values on a CPU alone",
    "core/merging.py weighted_sums": "looks for zeros on a CPU alone",
}
ENCODER = {
    "families/qwen2_vl.py Qwen2VL.groups": "how large pictures are, once for each prompt",
    "engine/encoder_reader.py EncoderReader._owners": "compares what is on the host anyhow",
    "engine/encoder_rows.py EncoderRows.segments": "where windows lie now, once: the host library looks in every block",
    "engine/segments.py Segments.__init__": "lays out what is on the host",
    "engine/forward.py Forward.enter_encoded": "how many tokens of each picture the encoder left, once for each stage",
}
TEXT = {
    "engine/token_state.py TokenState.text_rows": "which rows are text, where a method reads text",
    "engine/token_state.py TokenState.text_after": "which of them come after the picture",
}
PADDED = {
    "engine/padding.py Padding.of": "how many tokens of each row are padding, once for each forward with a mask",
    "engine/masks.py attention_mask": "transformers looks whether anything is masked",
}
ENDS = {"engine/token_state.py TokenState.take": "a row of tiles that has lost all its tokens loses its separator too"}
RECALLS = {"engine/token_state.py TokenState.recall": "which tokens were set aside"}
CORE = {  # what methods that declare `waits` may call
    "core/frames.py stretches": "how many scenes there are",
    "core/merging.py Survivors.exactly": "how many tokens merged",
    "core/selection.py Selection.of": "how many tokens stay, where that is not the budget",
    "core/selection.py Selection.span": "the same, span by span",
}


class Ops(TorchDispatchMode):
    def __init__(self, note):
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        counted = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in WAITING or masks or counted:
            self.note(name)
        return func(*args, **(kwargs or {}))


def function(code):
    """The name of the function that code belongs to. Comprehensions have code of their own until Python 3.11 alone."""
    return code.co_qualname.partition(".<locals>.<")[0]


def site():
    """The function of the package that is to blame: the innermost one, unless the model itself does it. Masks are made
    by the library, but on the package's account."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents:
            return f"{path.relative_to(PACKAGE).as_posix()} {function(frame.f_code)}"
        if "transformers" in path.parts and path.name != "masking_utils.py":
            return None
        frame = frame.f_back
    return None


@contextmanager
def waits(monkeypatch):
    """The places that make the host wait, with what does it."""
    found: dict[str, set[str]] = {}

    def note(what):
        where = site()
        if where is not None:
            found.setdefault(where, set()).add(what)

    with monkeypatch.context() as patch:
        for name in METHODS:
            plain = getattr(torch.Tensor, name)
            patch.setattr(torch.Tensor, name, lambda self, *a, n=name, f=plain, **k: (note(n), f(self, *a, **k))[1])
        made = torch.tensor
        waiting = lambda k: note("tensor") if k.get("device") is not None else None  # noqa: E731
        patch.setattr(torch, "tensor", lambda *a, **k: (waiting(k), made(*a, **k))[1])
        with Ops(note):
            yield found


def on_account_of(cls):
    """What the host waits for because of what a method reads and does, but for its own choice."""
    stages = [stage for _, stage in cls().schedule(32)]
    signals = [SIGNALS[need.signal] for stage in stages for need in stage.needs]
    text = any("m" in signal.axes for signal in signals)
    encoder = any(in_encoder(place) for place in places(cls))
    return {
        **ALWAYS,
        **(ENCODER if encoder else {}),
        **(TEXT if text else {}),
        **(RECALLS if any(stage.recalls for stage in stages) else {}),
    }


def asked(cls):
    """Whether a method runs on a prompt by itself: not at decoding steps, and with nothing that a user has to bring."""
    return not cls.decodes and not any(SIGNALS[name].given for name in signals_of(cls))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("method", [name for name, cls in all_methods().items() if asked(cls)])
def test_a_prompt_makes_the_host_wait_only_where_it_must(monkeypatch, name, method):
    tiny, cls = FAMILIES[name], method_class(method)
    model = tiny.build()
    inputs = tiny.inputs([[3, Picture(6, 6), 4]])
    del inputs["attention_mask"]
    inside = next((place for place in places(cls) if isinstance(place, Vision)), None)
    at = {} if inside is None else {"at": Vision(1)}  # these encoders are too short for where some stand
    try:
        run = tokenprune.prune(model, method, keep=0.3, **at)
    except tokenprune.MissingSignal as error:
        pytest.skip(f"{name}: {error}")
    with run, torch.no_grad():
        model(**inputs)
        with waits(monkeypatch) as found:
            model(**inputs)
    choosing = {where: what for where, what in found.items() if where in CORE or where.startswith("methods/")}
    assert cls.waits or not choosing, (
        f"{method} makes the host wait for the device: {choosing}. Keep sizes on the host; where how many there are of "
        "something follows from what the tokens are, say so in the class: waits: ClassVar[str] = 'why'."
    )
    assert choosing or not cls.waits, f"{method} does not make the host wait: take `waits` out of the class."
    assert set(found) <= {*choosing, *on_account_of(cls)}, found


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_padding_tiles_and_decoding_add_no_more_than_is_named(monkeypatch, method):
    tiny = FAMILIES["llava_next"]
    model = tiny.build()
    inputs = tiny.inputs([[3, Picture(4, 6), 4], [Picture(3, 4), 9]])
    with tokenprune.prune(model, method, keep=0.3), torch.no_grad():
        with waits(monkeypatch) as found:
            cache = model(**inputs, use_cache=True).past_key_values
        assert set(found) <= {*ALWAYS, *PADDED, *ENDS}, found
        token = torch.tensor([[5], [6]])
        with waits(monkeypatch) as found:
            model(input_ids=token, past_key_values=cache)
        assert set(found) <= {*PADDED}, found


def test_a_method_is_held_to_what_it_declares(monkeypatch):
    monkeypatch.setattr(tokenprune.ToDRE, "waits", "")
    with pytest.raises(AssertionError, match=r"todre makes the host wait .* say so in the class: waits: ClassVar"):
        test_a_prompt_makes_the_host_wait_only_where_it_must(monkeypatch, "llava", "todre")
    monkeypatch.setattr(tokenprune.EVS, "waits", "for no reason")
    with pytest.raises(AssertionError, match=r"evs does not make the host wait: take `waits` out of the class"):
        test_a_prompt_makes_the_host_wait_only_where_it_must(monkeypatch, "llava", "evs")


def test_the_watch_sees_a_sync(monkeypatch):
    """The tests above can fail."""
    with waits(monkeypatch) as found:
        tokenprune.select("todre_migration", keep=2, text_attention=torch.rand(2, 3, 9))
    assert "core/selection.py Selection.of" in found


def test_a_comprehension_is_its_function():
    """On every Python: whether it has a frame of its own, as until 3.11 and in generators, or not."""
    source = """
class A:
    def of(self):
        [note() for _ in "x"], {note() for _ in "x"}, {note(): 1 for _ in "x"}, list(note() for _ in "x")
        [[note() for _ in "x"] for _ in "x"], (lambda: [note() for _ in "x"])()
        def inner():
            [note() for _ in "x"]
        inner()
A().of()
"""
    found = []
    exec(source, {"note": lambda: found.append(function(sys._getframe(1).f_code))})
    assert found == ["A.of"] * 6 + ["A.of.<locals>.inner"]


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "mistral3"])
def test_a_decoding_step_waits_for_nothing(monkeypatch, name, positions):
    """Without a mask; with one, once, to see whether anything is padding; and for what a window lets go."""
    tiny = FAMILIES[name]
    model, inputs = tiny.build(), tiny.inputs([[3, Picture(4, 6), 4]])
    windows = {"engine/layer_inputs.py LayerInputs.keys"} if name == "mistral3" else set()
    mask = inputs.pop("attention_mask")
    step = {"input_ids": torch.tensor([[5]]), "use_cache": True}
    with tokenprune.prune(model, "uniform", keep=0.3, positions=positions), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        for more in range(1, 5):
            plain = more < 3 or name.startswith("qwen")  # which counts positions from the mask
            given = {} if plain else {"attention_mask": torch.nn.functional.pad(mask, (0, more), value=1)}
            with waits(monkeypatch) as found:
                model(**step, past_key_values=cache, **given)
            assert found.keys() <= ({"engine/padding.py Padding.of"} if given else set()) | windows, found
