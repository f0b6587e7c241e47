"""Laws 1, 2 and 5: nothing changed at keep = 1.0, exact removal, counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tokenprune
from tests.draw import cases
from tests.laws import (
    BATCHES,
    GREEDY,
    METHODS,
    PLANS,
    STAGES,
    attach,
    by_family,
    cells,
    few_families,
    policies,
    state_of,
    unpruned,
    works,
)
from tests.tiny import FAMILIES, Picture
from tokenprune import BadInput, Random, Stage, Uniform, prune
from tokenprune.core.budget import n_keep
from tokenprune.signals import taps

pytestmark = pytest.mark.laws
CORE = ("fopru", "uniform", "divprune+fastv")  # on every family; the other plans on the anchors
# FrameFusion's keep is a mean over the layers: `test_framefusion_meets_its_mean`.
COUNTED = [plan for plan in PLANS if not METHODS[plan].name.startswith("framefusion")]
WHOLE = {"downsample": "pools the whole grid", "quota-score=text": "resizes whole frames"}


@cases("family, plan, positions", policies(cells(PLANS, everywhere=CORE), both=CORE), by_family)
def test_keep_all_changes_nothing(family, tiny_models, plan, positions):
    """Law 1."""
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    name, options = PLANS[plan](1.0)
    expected, sequence = unpruned(family, model)
    with torch.no_grad(), prune(model, name, positions=positions, **options) as run:
        assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(model.generate(**inputs, **GREEDY), sequence)
        assert run.report().flops == run.report().dense_flops


@cases("family, plan", cells([*PLANS, *STAGES], everywhere=CORE), by_family)
def test_removal_is_exact(family, tiny_models, plan):
    """Law 2."""
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    with torch.no_grad():
        expected, _ = unpruned(family, model)
        before = state_of(model)
        run = attach(model, plan)
        pruned = model(**inputs).logits
        run.remove()
        run.remove()
        assert not torch.equal(pruned, expected)
        assert state_of(model) == before
        assert torch.equal(model(**inputs).logits, expected)


@few_families
def test_removal_after_an_exception(family, tiny_models):
    """Law 2: also when the forward pass itself breaks, inside the tapped attention or the vision encoder."""
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    with torch.no_grad():
        expected = model(**inputs).logits
    before = state_of(model)
    text_model = family.text_model(model)
    for place in (text_model.layers[2].mlp, text_model.layers[1].self_attn.o_proj, text_model.norm):
        handle = place.register_forward_pre_hook(_break)
        with pytest.raises(RuntimeError, match="broken on purpose"), attach(model, "four stages"):
            model(**inputs)
        handle.remove()
        assert state_of(model) == before
        assert not taps.listeners()
    with torch.no_grad(), attach(model, "four stages") as run:
        first = model(**inputs).logits
        handle = text_model.layers[2].mlp.register_forward_pre_hook(_break)
        with pytest.raises(RuntimeError, match="broken on purpose"):
            model(**inputs)
        handle.remove()
        assert torch.equal(model(**inputs).logits, first), "a run goes on after a broken forward"
        assert run.kept
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)


def _break(*_):
    raise RuntimeError("broken on purpose")


@few_families
def test_two_models_do_not_see_each_other(family):
    """Law 2: taps of one run leave another model, pruned or not, as it is."""
    first, second = family.build(), family.build()
    inputs = family.inputs(BATCHES["one"])
    with torch.no_grad():
        expected = second(**inputs).logits
        one = prune(first, "fastv", keep=0.3)
        two = prune(second, "fopru" if works(family, "fopru") else "fastv", keep=0.3)
        alone = first(**inputs).logits
        second(**inputs)
        two.remove()
        assert torch.equal(second(**inputs).logits, expected)
        assert torch.equal(first(**inputs).logits, alone)
        one.remove()
        assert not ALL_ATTENTION_FUNCTIONS._local_mapping


@cases("family, plan", cells(COUNTED, everywhere=CORE), by_family)
def test_counts_are_what_was_asked(family, tiny_models, plan):
    """Law 5: exactly k unique ascending prompt columns of visual tokens, and no use of the global random state."""
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    pictures = [
        [[t * h * w for t, h, w in family.spans(part)] for part in row if isinstance(part, Picture)]
        for row in BATCHES["padded"]
    ]
    sizes = [[n for picture in row for n in picture] for row in pictures]
    for keep in (0.05, 0.3, 0.5, 1, 7):
        method = replace(METHODS[plan], keep=keep)
        with torch.no_grad(), prune(model, method, at=max(method.first_at, min(method.default_at, 2))) as run:
            torch.manual_seed(5)
            expected = torch.rand(3)
            torch.manual_seed(5)
            model(**inputs)
            assert torch.equal(torch.rand(3), expected)
            for row, columns in enumerate(run.kept[0]):
                counts = sizes[row] if method.scope == "part" else [sum(picture) for picture in pictures[row]]
                asked = [n_keep(keep, n, method.rounding) for n in counts]
                assert len(columns) == sum(asked)
                assert columns.dtype == torch.long
                assert torch.equal(columns, columns.unique())
                assert torch.isin(inputs["input_ids"][row, columns], torch.tensor(family.placeholder)).all()


def test_pruning_twice_raises(family, tiny_models):
    model = tiny_models(family)
    with prune(model, "uniform", keep=0.5), pytest.raises(tokenprune.Unsupported) as error:
        prune(model, "uniform", keep=0.5)
    assert str(error.value) == (
        "This model is already pruned. Call remove() on the first run, or leave its with block."
    )
    with prune(model, [Stage(0, Uniform(keep=0.5))]):
        pass


@cases("plan, scope", [(plan, scope) for plan in COUNTED for scope in ("part", "item")], lambda *_: None)
def test_every_method_after_another(tiny_models, plan, scope):
    """Law 5 where some tokens of a picture in tiles are gone already: half of what is left, or a reason."""
    family, method = FAMILIES["llava_next"], replace(METHODS[plan], keep=0.5, of="current")
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    stages = [Stage(0, Random(keep=0.6)), Stage(3, method, scope)]
    if plan in WHOLE:
        with torch.no_grad(), pytest.raises(BadInput, match=WHOLE[plan]), prune(model, stages):
            model(**inputs)
        return
    with torch.no_grad(), prune(model, stages) as run:
        model(**inputs)
        for row, columns in enumerate(run.kept[1]):
            left = [sum(c in run.kept[0][row] for c in span.columns) for span in run.spans if span.row == row]
            items = [span.item for span in run.spans if span.row == row]
            if scope == "item":
                left = [sum(n for n, i in zip(left, items, strict=True) if i == item) for item in sorted(set(items))]
            assert len(columns) == sum(n_keep(0.5, n, method.rounding) for n in left)
