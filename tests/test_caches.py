"""Law 6 and 7 for every kind of cache: shorter where it can be, refused where it cannot."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from transformers import DynamicCache, QuantizedCache, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from tests.draw import cases
from tests.laws import (
    ANCHORS,
    BATCHES,
    FAMILY,
    GREEDY,
    LOGITS,
    POLICIES,
    attach,
    by_anchor,
    check_static_cache,
    kept_by_layer,
    times,
)
from tests.oracle import oracle_logits
from tests.tiny import FAMILIES, Picture
from tokenprune import Stage, Uniform, Unsupported, prune

pytestmark = pytest.mark.laws
WINDOWED = ("gemma3", "paligemma2", "mistral3", "aya_vision", "cohere2_vision", "exaone4_5")
BOUNDLESS = [case for case in FAMILY if case.id not in WINDOWED]


@cases(
    "family, positions",
    [case for case in times(BOUNDLESS, POLICIES) if case.values[0].name not in ANCHORS],  # those: `test_versions`
    lambda *_: None,
)
def test_static_cache_is_allocated_at_its_real_length(family, tiny_models, positions):
    check_static_cache(family, tiny_models(family), positions)


@cases("family", BOUNDLESS, by_anchor)
def test_static_cache_by_hand(family, tiny_models):
    """A 2-D mask instead of the 4-D one that generate() makes; the cache serves again after reset()."""
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    cache = StaticCache(config=family.text_model(model).config, max_cache_len=200)
    with torch.no_grad(), attach(model, "divprune+fastv"):
        expected = model(**inputs, use_cache=True)
        token = torch.tensor([[5]])
        after = model(input_ids=token, past_key_values=expected.past_key_values).logits
        for _ in range(2):
            out = model(**inputs, past_key_values=cache)
            torch.testing.assert_close(out.logits, expected.logits, atol=1e-4, rtol=0)
            torch.testing.assert_close(
                model(input_ids=token, past_key_values=cache).logits[:, -1], after[:, -1], atol=1e-4, rtol=0
            )
            with pytest.raises(Unsupported, match="A pruned cache of StaticLayers cannot be cropped"):
                cache.layers[-1].crop(-1)
            cache.reset()


@cases("family", BOUNDLESS, by_anchor)
def test_static_layers_before_the_first_stage(family, tiny_models):
    """They have places that are still empty, which no step may see, in a prompt without padding either."""
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    with attach(model, "fastv"):
        grown = model.generate(**inputs, **GREEDY, **LOGITS)
        static = model.generate(**inputs, **GREEDY, **LOGITS, cache_implementation="static")
    torch.testing.assert_close(torch.stack(static.logits), torch.stack(grown.logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", WINDOWED)
def test_static_windows_are_refused(name, tiny_models):
    family = FAMILIES[name]
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    with prune(model, "uniform", keep=0.5), pytest.raises(Unsupported, match="a cache of StaticSlidingWindowLayer"):
        model.generate(**inputs, **GREEDY, cache_implementation="static")


@cases(
    "name, plan, positions",
    list(product(WINDOWED, ["divprune", "fastv", "divprune+fastv"], POLICIES)),
    lambda name, *_: name,
)
def test_windows_count_places_of_the_unpruned_sequence(name, tiny_models, plan, positions):
    """Decoding far beyond the window: what a layer may see and what it may forget is set by original places."""
    family = FAMILIES[name]
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    length = inputs["input_ids"].shape[1]
    long = GREEDY | {"max_new_tokens": 30}
    with attach(model, plan, positions) as run:
        out = model.generate(**inputs, **long, output_logits=True, return_dict_in_generate=True)
        kept = kept_by_layer(run)
        windows = [kind.window for kind in run.layer_kinds]
    expected = oracle_logits(family, model, family.grown(inputs, out.sequences), kept, positions == "compact")
    for step, scores in enumerate(out.logits):
        torch.testing.assert_close(scores, expected[:, length - 1 + step], atol=1e-4, rtol=0)
    assert any(windows)
    for layer, window in zip(out.past_key_values.layers, windows, strict=True):
        if window is not None:
            assert layer.keys.shape[2] <= window - 1


def test_prompt_lookup_beyond_the_window(tiny_models):
    """Rejected drafts are cropped from windows too."""
    for name in ("gemma3", "mistral3"):
        family = FAMILIES[name]
        model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5, 5]])
        inputs["input_ids"][0, -4:] = inputs["input_ids"][0, -8:-4]
        long = GREEDY | {"max_new_tokens": 30}
        with attach(model, "divprune+fastv"):
            greedy = model.generate(**inputs, **long)
            assert torch.equal(model.generate(**inputs, **long, prompt_lookup_num_tokens=3), greedy)


@cases("family", BOUNDLESS, by_anchor)
def test_quantized_cache(family, tiny_models):
    """Keys and values in 8 bits: the tokens of the prompt's end are exact, later ones within what 8 bits give."""
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    config = family.text_model(model).config
    try:
        cache = QuantizedCache("fp8", config)
    except ValueError:
        pytest.skip("this version of transformers has no fp8 cache, and the other backends are not installed")
    token = torch.tensor([[5]])
    with torch.no_grad(), attach(model, "divprune+fastv") as run:
        plain = model(**inputs, use_cache=True)
        bytes_plain = run.report().kv_bytes
        quantized = model(**inputs, past_key_values=cache)
        assert run.report().kv_bytes < 0.5 * bytes_plain
        torch.testing.assert_close(quantized.logits, plain.logits)
        expected = model(input_ids=token, past_key_values=plain.past_key_values).logits
        found = model(input_ids=token, past_key_values=cache).logits
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_refuses_offloaded_and_unknown_caches(family, tiny_models):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    offloaded = DynamicCache()
    offloaded.offloading = True  # the constructor's own flag wants a GPU
    with prune(model, "uniform", keep=0.5):
        with pytest.raises(Unsupported) as error:
            model(**inputs, past_key_values=offloaded)
        assert str(error.value) == (
            "tokenprune cannot shorten an offloaded cache yet. Use DynamicCache without offloading."
        )

    class Odd(DynamicSlidingWindowLayer):
        pass

    odd = DynamicCache()
    odd.layers = [Odd(sliding_window=8) for _ in range(6)]
    with prune(model, "uniform", keep=0.5), pytest.raises(Unsupported, match="a cache of Odd layers"):
        model(**inputs, past_key_values=odd)


def test_refuses_a_pruned_cache_without_the_run(family, tiny_models):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    with torch.no_grad():
        with prune(model, "uniform", keep=0.5):
            out = model(**inputs, use_cache=True)
            with pytest.raises(Unsupported, match="Call the model, not its text model"):
                family.text_model(model)(inputs_embeds=torch.zeros(1, 1, 64), past_key_values=out.past_key_values)
        with pytest.raises(Unsupported, match="filled by a pruned model"):
            model(input_ids=torch.tensor([[5]]), past_key_values=out.past_key_values)


def test_refuses_a_cache_of_other_stages(family, tiny_models):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    with torch.no_grad():
        with prune(model, [Stage(2, Uniform(keep=0.5))]):
            cache = model(**inputs, use_cache=True).past_key_values
        with (
            prune(model, [Stage(1, Uniform(keep=0.5))]),
            pytest.raises(Unsupported, match=r"pruned by stages at \[2\], and now stages stand at \[1\]"),
        ):
            model(input_ids=torch.tensor([[5]]), past_key_values=cache)
        with prune(model, [Stage(2, Uniform(keep=0.5))]):
            model(input_ids=torch.tensor([[5]]), past_key_values=cache)


def test_refuses_to_crop_into_the_prompt(tiny_models):
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    with torch.no_grad(), prune(model, "uniform", keep=0.5):
        cache = model(**inputs, use_cache=True).past_key_values
        model(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=cache)
        before = copy.deepcopy(cache)
        tail = 6  # five text tokens and the end-of-image token come after the image
        cache.crop(-2)
        assert cache.get_seq_length() == before.get_seq_length() - 2
        with pytest.raises(Unsupported, match=f"only the last {tail + 1} of this cache"):
            cache.crop(-tail - 2)
        with pytest.raises(Unsupported, match="cropped by a negative number"):
            cache.crop(3)


@pytest.mark.parametrize("plan", ["tome", "sparsevlm", "lvlm_csp", "todre-received"])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_static_cache_with_merged_and_waiting_tokens(name, tiny_models, plan):
    """The same logits as with a cache that grows."""
    family = FAMILIES[name]
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    more = {"output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad(), attach(model, plan):
        grown = model.generate(**inputs, **GREEDY, **more)
        static = model.generate(**inputs, **GREEDY, **more, cache_implementation="static", disable_compile=True)
    torch.testing.assert_close(torch.stack(static.logits), torch.stack(grown.logits), atol=1e-4, rtol=0)
