"""What has moved is found by its old name, with a warning that says where it is."""

from __future__ import annotations

import importlib
import sys

import pytest

import tokenprune
from tests.tiny import FAMILIES
from tokenprune.methods.base import make_method
from tokenprune.methods.registry import all_methods
from tokenprune.methods.renamed import OWN
from tokenprune.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_old_names_of_modules_go_on(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} goes in the next release. Import {MOVED[old]}"):
        module = importlib.import_module(old)
    new = importlib.import_module(MOVED[old])
    assert module is new
    assert new.__spec__.name == new.__name__ == MOVED[old]
    assert importlib.reload(new) is new


def test_other_names_are_still_missing():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("tokenprune.overlays")


def test_the_old_name_of_lift_goes_on(tiny_models):
    with tokenprune.prune(tiny_models(FAMILIES["llava"]), "uniform", keep=0.5) as run:
        with pytest.warns(DeprecationWarning, match=r"Call run\.lift\(\)"):
            lifted = run.lifted()
        with lifted:
            assert run.is_lifted
        assert not run.is_lifted


@pytest.mark.parametrize("method", OWN)
def test_old_phases_are_stages_now(method):
    cls = all_methods()[method]
    for name, stage in {**cls.stages, cls.name: cls}.items():
        phase = OWN[method] if stage is cls else name.removeprefix(f"{method}_")
        for make in (cls, lambda **options: tokenprune.Plan.of(method, **options).what):
            with pytest.warns(DeprecationWarning, match=f"Write '{name}'"):
                made = make(phase=phase, keep=1.0)
            assert made == stage(keep=1.0)
    with pytest.raises(tokenprune.BadInput, match=f"Unknown phase of {method} 'no'"):
        cls(phase="no")
    with pytest.raises(tokenprune.BadInput, match="phase"):
        tokenprune.Plan.of("divprune", phase="inner")


def test_an_option_with_a_new_name():
    cls = all_methods()["framefusion"]
    for make in (cls, lambda **options: make_method(cls, options)):
        with pytest.warns(DeprecationWarning, match=r"places= of framefusion goes in the next release\. Write within="):
            assert make(places=3, keep=0.5) == cls(within=3, keep=0.5)
