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
from tokenprune.methods.registry import all_methods

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal"}
METHODS = ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
PACKAGE = Path(tokenprune.__file__).parent
ALWAYS = {
    "families/layout.py placeholder_columns": "where the images stand, once for each prompt",
    "families/qwen2_vl.py Qwen2VL.items": "how large they are, once for each prompt",
    "families/qwen2_vl.py Qwen2VL.place": "the same, where the encoder's attention is read",
    "families/llava_next.py LlavaNext._parts": "the same",
    "attach/choose.py checked": "looks at values on a CPU alone",
}
TEXT = {
    "attach/signals.py text_rows.<locals>.<listcomp>": "which rows are text, where a method reads text",
    "attach/signals.py text_after": "which of them come after the picture",
}
PADDED = {
    "attach/run.py Run._start": "how many tokens of each row are padding, once for each forward with a mask",
    "attach/masks.py attention_mask": "transformers looks whether anything is masked",
}
ENDS = {"attach/forward.py Forward._shorten": "a row of tiles that has lost all its tokens loses its separator too"}
OPEN = {  # how many tokens, scenes or clusters there are follows from what the tokens are
    "core/frames.py stretches",
    "core/merging.py Survivors.exactly",
    "core/selection.py Selection.of",
    "core/selection.py Selection.span",
    "attach/forward.py Forward._recall",
    *(f"methods/{name}" for name in ("downsample.py", "fastvid.py", "flashvid.py", "framefusion.py", "holitom.py")),
    *(f"methods/{name}" for name in ("llava_scissor.py", "prunevid.py")),
    # and these could do without
    *(f"methods/{name}" for name in ("holov.py", "light_colpali.py", "vflowopt.py")),
}
GIVEN = {"quota", "streamvln"}  # they read what a user brings
READ_TEXT = {"adaptinfer", "cdpruner", "dart", "lvlm_csp", "prunevid", "sparsevlm", "star"}
COUNT = {"downsample", "fastvid", "flashvid", "framefusion", "holitom", "holov", "light_colpali", "llava_scissor"}
COUNT |= {"lvlm_csp", "prumerge", "prunevid", "todre", "vflowopt"}


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


def site():
    """The function of the package that is to blame: the innermost one, unless the model itself does it. Masks are made
    by the library, but on the package's account."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents:
            name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
            return f"{path.relative_to(PACKAGE).as_posix()} {name}"
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


def allowed(method):
    """What a method may wait for; those of `COUNT` find out on the way how many of something there are."""
    return set(ALWAYS) | (set(TEXT) if method in READ_TEXT else set()) | (OPEN if method in COUNT else set())


def within(found, names):
    return {where for where in found if where not in names and where.split()[0] not in names} == set()


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("method", [n for n, c in all_methods().items() if not c.decodes and n not in GIVEN])
def test_a_prompt_makes_the_host_wait_only_where_it_must(monkeypatch, name, method):
    tiny = FAMILIES[name]
    model = tiny.build()
    inputs = tiny.inputs([[3, Picture(6, 6), 4]])
    del inputs["attention_mask"]
    try:
        run = tokenprune.prune(model, method, keep=0.3)
    except tokenprune.MissingSignal as error:
        pytest.skip(f"{name}: {error}")
    with run, torch.no_grad():
        model(**inputs)
        with waits(monkeypatch) as found:
            model(**inputs)
    assert within(found, allowed(method)), found


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_padding_tiles_and_decoding_add_no_more_than_is_named(monkeypatch, method):
    tiny = FAMILIES["llava_next"]
    model = tiny.build()
    inputs = tiny.inputs([[3, Picture(4, 6), 4], [Picture(3, 4), 9]])
    with tokenprune.prune(model, method, keep=0.3), torch.no_grad():
        with waits(monkeypatch) as found:
            cache = model(**inputs, use_cache=True).past_key_values
        assert within(found, {*ALWAYS, *PADDED, *ENDS}), found
        token = torch.tensor([[5], [6]])
        with waits(monkeypatch) as found:
            model(input_ids=token, past_key_values=cache)
        assert within(found, {*PADDED}), found


def test_the_watch_sees_a_sync(monkeypatch):
    """The test above can fail."""
    with waits(monkeypatch) as found:
        tokenprune.select("todre", keep=2, phase="migration", attention_row=torch.rand(2, 9))
    assert "core/selection.py Selection.of" in found
