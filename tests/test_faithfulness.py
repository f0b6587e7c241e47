"""The ledger: every method says what it is held to, and the committed table is what the method files and tests say."""

from __future__ import annotations

import inspect
import json
import re

import pytest

from eval import faithfulness
from tests.plugin.tokenprune_centre.method import Centre
from tests.signals import Hear
from tokenprune import FastV, HiRED, prune
from tokenprune.methods.base import make_method, options_of
from tokenprune.methods.origin import KINDS, Difference, Origin
from tokenprune.methods.registry import elsewhere, find, method_class

OWN = faithfulness.own_methods()


def states_its_origin(cls):
    origin = vars(cls).get("origin", Origin("unstated"))
    assert origin.kind != "unstated", f"{cls.name}: say in the class what it is held to, origin: ClassVar[Origin] = ..."
    if origin.kind == "code":
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", origin.repository)
        assert re.fullmatch(r"[0-9a-f]{7,40}", origin.commit)
    if origin.kind == "abstract":
        first = cls.__doc__.strip().splitlines()[0]
        assert "our reading" in first.lower(), f"{cls.name}: its docstring's first line does not say 'our reading'"
    assert (origin.kind == "ours") == (cls.paper == "baseline"), f"{cls.name}: whose is it?"


def states_its_differences(cls):
    for difference in cls.differences:
        assert difference.what.strip(" .") == difference.what != ""
        assert difference.why.strip(" .") == difference.why != "", f"{cls.name}: {difference.what}: why?"
        own = {name: value for name, value in difference.published.items() if name in {f.name for f in options_of(cls)}}
        built = make_method(cls, own)
        assert not own or built != cls(), f"{cls.name}: {own} is what it does anyhow"
        for name, value in difference.published.items() - own.items():
            assert name in inspect.signature(prune).parameters, f"{cls.name} has no option {name}"
            assert (name, value) == ("positions", "compact"), f"{cls.name}: what does {name}={value!r} do?"


@pytest.mark.parametrize("method", OWN)
def test_a_method_states_its_origin(method):
    states_its_origin(method_class(method))


@pytest.mark.parametrize("method", [name for name, cls in OWN.items() if cls.differences])
def test_options_that_give_the_published_behaviour_exist(method):
    states_its_differences(method_class(method))


def test_a_method_without_an_origin_fails(monkeypatch):
    """The checks above can fail."""
    with pytest.raises(AssertionError, match="hear: say in the class what it is held to"):
        states_its_origin(Hear)
    monkeypatch.setattr(Hear, "origin", Origin("abstract"), raising=False)
    with pytest.raises(AssertionError, match="first line does not say 'our reading'"):
        states_its_origin(Hear)
    for wrong in ({"fil": "none"}, {"positions": "compacted"}, {"fill": "attention"}):
        monkeypatch.setattr(HiRED, "differences", (Difference("a", "b", wrong),))
        with pytest.raises((AssertionError, ValueError)):
            states_its_differences(HiRED)
    for wrong in (("paper", "a/b", "1234567"), ("code", "a/b"), ("hearsay",)):
        with pytest.raises(ValueError, match="origin"):
            Origin(*wrong)


def test_a_method_of_another_package_may_leave_it_out():
    assert str(Centre.origin) == KINDS["unstated"]
    assert Centre.differences == ()
    assert Centre.name not in OWN


def test_the_ledger_is_up_to_date():
    """What it says of the methods that it names. A new one needs no entry: `make readme` adds one some day."""
    committed = json.loads(faithfulness.JSON.read_text())
    fresh = json.loads(json.dumps(faithfulness.ledger()))
    assert {name: fresh.get(name) for name in committed} == committed, "it is stale: python -m eval.faithfulness"
    assert faithfulness.page(committed) == faithfulness.PAGE.read_text()


@pytest.mark.parametrize("method", OWN)
def test_a_method_is_held_by_a_test(method):
    """A vector of the published code, or an independent computation: see `eval/faithfulness.py`."""
    assert any(method in holding.methods for holding in faithfulness.holdings())


def test_every_vector_is_read_by_a_test_that_holds_a_method():
    read = {vector for holding in faithfulness.holdings() for vector in holding.vectors}
    assert read | faithfulness.OWN_VECTORS == faithfulness.VECTORS


def test_the_table_has_what_the_entries_have():
    entry = {"paper": "p", "origin": {}, "vectors": ["v"], "published_code": [], "independent": ["tests/t.py::test_x"]}
    entry["differences"] = [{"what": "one", "why": "because", "published": {"fill": "none"}}]
    row = faithfulness.page({"fastv": entry}).splitlines()[-1]
    origin = f"the published code ({FastV.origin.repository} at {FastV.origin.commit})"
    by = "vectors of the published code: `v`; our computation: `test_x`"
    assert row == f"| `fastv` | p | {origin} | {by} | one: because (`fill='none'`) |"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("2403.06764", ["fastv"]),
        ("arXiv:2412.01818v2", ["fastervlm", "vispruner"]),
        ("https://arxiv.org/abs/2411.15024", ["dycoke", "dycoke_kv"]),
        ("FastV", ["fastv", "fastvid"]),
        ("LLaVA-PruMerge", ["prumerge"]),
        ("SparseVLM+", ["sparsevlm"]),
        ("lrs-vqa", ["coarse_to_fine"]),
        ("Efficient Video Sampling", ["evs"]),
        ("token merging", ["tome"]),
        ("2403.0676", []),
        ("GAP", []),
        ("", []),
    ],
)
def test_methods_are_found_by_what_their_papers_call_them(words, names):
    assert [cls.name for cls in find(words)] == names


@pytest.mark.parametrize("method", OWN)
def test_a_method_is_found_by_its_own_names_and_number(method):
    cls = method_class(method)
    assert find(method)[0] is find(method.upper())[0] is find(cls.__name__)[0] is cls
    assert cls.paper == "baseline" or cls in find(cls.paper)


def test_what_is_no_method_says_where_it_is():
    for words in ("gap", "2506.21873", "https://arxiv.org/pdf/2506.21873v1"):
        (where,) = elsewhere(words)
        assert "position policy `original`" in where
    assert not elsewhere("fastv") + elsewhere("2403.06764")
