"""Laws 1, 2, 4, 5 and 6: nothing changed at keep = 1.0, exact removal, batches, counts, a shorter cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tokenprune
from tests.test_laws import BATCHES, GREEDY, METHODS, PLANS, STAGES, attach, cells, kept_by_layer, policies, works
from tests.tiny import FAMILIES, Picture
from tokenprune import BadInput, Random, Stage, Uniform, prune
from tokenprune.attach import taps
from tokenprune.core.budget import n_keep

pytestmark = pytest.mark.laws
CORE = ("fopru", "uniform", "divprune+fastv")  # on every family; the other plans on the anchors
# FrameFusion's keep is a mean over the layers: `test_framefusion_meets_its_mean`.
COUNTED = [plan for plan in PLANS if METHODS[plan].name != "framefusion"]
WHOLE = {"downsample": "pools the whole grid", "quota-score=text": "resizes whole frames"}


def state_of(model):
    """Everything removal must give back: attribute names and hook counts of each module, the attention table."""
    modules = {
        name: (sorted(vars(m)), len(m._forward_pre_hooks), len(m._forward_hooks), len(m._forward_hooks_with_kwargs))
        for name, m in model.named_modules()
    }
    return modules, dict(ALL_ATTENTION_FUNCTIONS._local_mapping), dict(ALL_ATTENTION_FUNCTIONS._global_mapping)


@policies(cells(PLANS, everywhere=CORE), both=CORE)
def test_keep_all_changes_nothing(family, tiny_models, plan, positions):
    """Law 1."""
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    name, options = PLANS[plan](1.0)
    with torch.no_grad():
        expected = model(**inputs).logits
        sequence = model.generate(**inputs, **GREEDY)
        with prune(model, name, positions=positions, **options) as run:
            assert torch.equal(model(**inputs).logits, expected)
            assert torch.equal(model.generate(**inputs, **GREEDY), sequence)
            assert run.report().flops == run.report().dense_flops


@pytest.mark.parametrize(("family", "plan"), cells([*PLANS, *STAGES], everywhere=CORE))
def test_removal_is_exact(family, tiny_models, plan):
    """Law 2."""
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    with torch.no_grad():
        expected = model(**inputs).logits
        before = state_of(model)
        run = attach(model, plan)
        pruned = model(**inputs).logits
        run.remove()
        run.remove()
        assert not torch.equal(pruned, expected)
        assert state_of(model) == before
        assert torch.equal(model(**inputs).logits, expected)


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


@policies(cells([*PLANS, *STAGES], everywhere=CORE), both=CORE)
def test_padded_batch_equals_rows_alone(family, tiny_models, plan, positions):
    """Law 4: different lengths, different numbers of images and kept tokens, a text-only row."""
    model = tiny_models(family)
    rows = [[3, Picture(4, 6), 5], [2, Picture(3, 4), 4, Picture(4, 3), 6], [6], [9, Picture(4, 6), 2]]
    batch = family.inputs(rows)
    with attach(model, plan, positions) as run:
        together = model.generate(**batch, **GREEDY, output_logits=True, return_dict_in_generate=True)
        kept = run.kept
        for i, row in enumerate(rows):
            single = family.inputs([row], first=i)
            out = model.generate(**single, **GREEDY, output_logits=True, return_dict_in_generate=True)
            padding = batch["input_ids"].shape[1] - single["input_ids"].shape[1]
            if len(row) > 1:
                assert [k[0].tolist() for k in run.kept] == [(k[i] - padding).tolist() for k in kept], f"row {i}: {row}"
            for a, b in zip(together.logits, out.logits, strict=True):
                torch.testing.assert_close(a[i], b[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("family", "plan"), cells(COUNTED, everywhere=CORE))
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


@pytest.mark.parametrize(("family", "plan"), cells([*PLANS, *STAGES], everywhere=CORE))
def test_cache_is_as_short_as_the_plan(family, tiny_models, plan):
    """Law 6: rows of each layer's keys, the report's bytes, and the logical length that decoding continues from."""
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    length = inputs["input_ids"].shape[1]
    marks = int(torch.isin(inputs["input_ids"], torch.tensor(family.placeholder)).sum())
    visual = sum(t * h * w for t, h, w in family.spans(Picture(4, 6)))
    with torch.no_grad(), attach(model, plan) as run:
        cache = DynamicCache(config=family.text_model(model).config)
        model(**inputs, past_key_values=cache)
        tokens, rows = dict.fromkeys(range(6), visual), dict.fromkeys(range(6), marks)
        for (at, columns), kept in zip(kept_by_layer(run).items(), run.kept, strict=True):
            tokens |= dict.fromkeys(range(at, 6), len(kept[0]))
            rows |= dict.fromkeys(range(at, 6), len(columns[0]))
        windows = [kind.window for kind in run.kinds]
        for i, layer in enumerate(cache.layers):
            held, window = length - marks + rows[i], windows[i]
            assert layer.keys.shape[2] == held if window is None else min(held, window - 1) >= layer.keys.shape[2] > 0
        assert run.report().layer_tokens == list(tokens.values())
        assert run.report().kv_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert run.report().kv_bytes < run.report().dense_kv_bytes
        assert cache.get_seq_length() == length
        assert all(layer.get_seq_length() == length for layer in cache.layers)


def test_pruning_twice_raises(family, tiny_models):
    model = tiny_models(family)
    with prune(model, "uniform", keep=0.5), pytest.raises(tokenprune.Unsupported) as error:
        prune(model, "uniform", keep=0.5)
    assert str(error.value) == (
        "This model is already pruned. Call remove() on the first run, or leave its with block."
    )
    with prune(model, [Stage(0, Uniform(keep=0.5))]):
        pass


@pytest.mark.parametrize("scope", ["part", "item"])
@pytest.mark.parametrize("plan", COUNTED)
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
