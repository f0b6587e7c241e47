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
    "families/layout.py placeholder_columns": "the host has to know where the images stand, once for each prompt",
    "attach/choose.py checked": "looks at values on a CPU alone",
}
PADDED = {"attach/run.py _start": "how many tokens of each row are padding, once for each forward with a mask"}
LATER = {"attach/masks.py attention_mask": "transformers looks whether anything is masked at all"}


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
        patch.setattr(torch, "tensor", lambda *a, **k: (note("tensor"), made(*a, **k))[1])
        with Ops(note):
            yield found


def fixed():
    """Methods whose counts follow from keep alone."""
    return [name for name, cls in all_methods().items() if not cls.decodes]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("method", fixed())
def test_a_prompt_makes_the_host_wait_only_where_it_must(monkeypatch, family, method):
    tiny = FAMILIES[family]
    model = tiny.build()
    inputs = tiny.inputs([[3, Picture(6, 6), 4]])
    del inputs["attention_mask"]
    with tokenprune.prune(model, method, keep=0.3), torch.no_grad():
        model(**inputs)
        with waits(monkeypatch) as found:
            model(**inputs)
    print(found)
    assert set(found) <= set(ALWAYS), found
