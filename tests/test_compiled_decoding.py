"""Decoding that `generate` compiles: what a pruned model says with a static cache is what it says with one that grows.

Graphs run eagerly here (`backend="eager"`), and each must be whole: what is compiled of them is torch's affair.
"""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache, StaticCache

from tests.draw import cases
from tests.laws import BATCHES, CACHE, GREEDY, LOGITS, POLICIES, attach, cache_of
from tests.tiny import FAMILIES, Picture
from tokenprune import DivPrune, FastV, Pixels, Stage, Uniform, Unsupported, prune
from tokenprune.engine.cache import BUCKET

pytestmark = pytest.mark.laws
NAMES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl")
PLANS = ("divprune", "fastv", "divprune+fastv", "four stages")
WINDOWED = ("gemma3", "paligemma2", "mistral3", "aya_vision", "cohere2_vision", "exaone4_5")
STATIC = GREEDY | LOGITS | {"cache_implementation": "static"}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled():
    """What `generate` is told on a CPU to do what it does on a GPU by itself."""
    config = CompileConfig(backend="eager", fullgraph=True)
    config._compile_all_devices = True
    return STATIC | {"compile_config": config}


def graphs():
    """Graphs made since the test began."""
    return counters["stats"]["unique_graphs"]


def same(found, wanted):
    assert torch.equal(found.sequences, wanted.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(wanted.logits), atol=1e-4, rtol=0)


@cases(
    "name, plan, positions, batch",
    [
        pytest.param(name, plan, positions, batch, id=f"{name}-{plan}-{positions}-{batch}")
        for plan in PLANS
        for name in NAMES
        for positions in POLICIES
        for batch in ("one", "padded")
    ],
    lambda name, *_: name,
)
def test_compiled_steps_say_what_eager_ones_say(name, plan, positions, batch, tiny_models):
    """Stages before and inside the LLM, both position policies, rows that keep different counts."""
    model, inputs = tiny_models(FAMILIES[name]), FAMILIES[name].inputs(BATCHES[batch])
    with attach(model, plan, positions):
        wanted = model.generate(**inputs, **GREEDY, **LOGITS)
        same(model.generate(**inputs, **compiled()), wanted)
        assert graphs() == 1
        same(model.generate(**inputs, **compiled()), wanted)
        assert graphs() == 1, "the second prompt shares the graph"
    assert not counters["graph_break"]


@cases(
    "name, plan",
    [(name, plan) for name in FAMILIES for plan in ("divprune", "fastv") if name not in (*NAMES, *WINDOWED)],
    lambda *_: None,
)
def test_other_families(name, plan, tiny_models):
    model, inputs = tiny_models(FAMILIES[name]), FAMILIES[name].inputs(BATCHES["padded"])
    with attach(model, plan, "compact"):
        same(model.generate(**inputs, **compiled()), model.generate(**inputs, **GREEDY, **LOGITS))
    assert graphs() == 1


@pytest.mark.parametrize(
    ("attention", "stages"),
    [
        ("eager", [Stage(0, DivPrune(keep=0.5)), Stage(2, FastV(keep=0.4))]),
        ("sdpa", [Stage(Pixels(), Uniform(keep=0.5)), Stage(3, FastV(keep=0.5))]),
        ("sdpa", [Stage(2, FastV(keep=1.0))]),
    ],
)
def test_other_plans(attention, stages, tiny_models):
    """Masks that are added, a stage before the vision encoder, and one that drops nothing."""
    family = FAMILIES["qwen2_5_vl"]
    model, inputs = tiny_models(family, attention), family.inputs(BATCHES["padded"])
    with prune(model, stages, positions="compact"):
        same(model.generate(**inputs, **compiled()), model.generate(**inputs, **GREEDY, **LOGITS))


def test_prompts_of_like_length_share_a_graph(tiny_models):
    """Longer and shorter ones, whatever was kept of them; each has room for whole buckets."""
    family = FAMILIES["qwen2_5_vl"]
    model = tiny_models(family)
    prompts = [family.inputs([[3, Picture(h, 6), 5]]) for h in (10, 4, 8)]
    with prune(model, [Stage(0, DivPrune(keep=0.6)), Stage(2, FastV(keep=0.5))]) as run:
        for inputs in prompts:
            wanted = model.generate(**inputs, **GREEDY, **LOGITS)
            found = model.generate(**inputs, **compiled())
            same(found, wanted)
            layers = cache_of(found).layers
            assert {layer.keys.shape[2] for layer in layers} == {BUCKET}
            assert [layer.rows for layer in layers] == [layer.rows for layer in cache_of(wanted).layers]
        assert run.report().kv_bytes < run.report().dense_kv_bytes
    assert graphs() == 1


def test_a_graph_serves_the_plan_that_it_was_made_for(tiny_models):
    """Unpruned, pruned, for text alone, lifted and unpruned again: hooks alone would not tell graphs apart."""
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    text = family.inputs([[5, 6, 7]])
    text.pop("pixel_values", None)
    dense, spoken = (model.generate(**given, **GREEDY, **LOGITS) for given in (inputs, text))
    same(model.generate(**inputs, **compiled()), dense)
    with attach(model, "fastv", "compact") as run:
        wanted = model.generate(**inputs, **GREEDY, **LOGITS)
        same(model.generate(**inputs, **compiled()), wanted)
        same(model.generate(**text, **compiled()), spoken)
        with run.lift():
            same(model.generate(**inputs, **compiled()), dense)
        assert graphs() == 4
        same(model.generate(**inputs, **compiled()), wanted)
    same(model.generate(**inputs, **compiled()), dense)
    assert graphs() == 4


@pytest.mark.parametrize(("plan", "positions"), [("divprune+fastv", "compact"), ("fastv", "original")])
def test_a_second_turn(plan, positions, tiny_models):
    """Of text, of a picture, and a word by hand: all go on with the cache that compiled steps have left."""
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5], [2, Picture(4, 6), 4]])
    more = family.inputs([[6, Picture(4, 6), 7], [8, Picture(4, 6), 9]])
    words = {"input_ids": torch.tensor([[11, 12, 13], [21, 22, 23]])}
    said = []
    for how, cache in ((GREEDY | LOGITS, DynamicCache()), (compiled(), static(model, 300))):
        own = {CACHE: cache} | {name: value for name, value in how.items() if name != "cache_implementation"}
        with torch.no_grad(), attach(model, plan, positions, turns="accept"):
            first = model.generate(**inputs, **own)
            second = model.generate(**turn(first, words), **own)
            third = model.generate(**turn(second, more), **own)
            last = model(input_ids=third.sequences[:, -1:], **{CACHE: cache}).logits
        said.append((first, second, third, last))
    (*grown, word), (*found, again) = said
    for one, other in zip(found, grown, strict=True):
        same(one, other)
    torch.testing.assert_close(again, word, atol=1e-4, rtol=0)


def static(model, length):
    return StaticCache(config=model.config.get_text_config(), max_cache_len=length)


def turn(output, inputs):
    """What `generate` takes for a prompt after what it said before."""
    ids = torch.cat([output.sequences, inputs["input_ids"]], dim=1)
    return inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_a_cache_that_changes_between_steps(tiny_models):
    """Rows in another order, as searches leave them: the next step settles the cache anew."""
    family = FAMILIES["qwen2_5_vl"]
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5], [2, Picture(3, 4), 4]])
    order = torch.tensor([1, 0])
    said = []
    with torch.no_grad(), attach(model, "divprune+fastv", "compact"):
        steps = model.get_compiled_call(compiled()["compile_config"])
        for forward, cache in ((model, DynamicCache()), (steps, static(model, 300))):
            model.model.rope_deltas = None
            model(**inputs, **{CACHE: cache})
            own = inputs["attention_mask"].sum(1)[:, None]
            logits = []
            for step in range(4):
                given = {"position_ids": (own + step)[None].expand(3, -1, -1), CACHE: cache}
                logits.append(forward(input_ids=torch.full((2, 1), 5 + step), **given).logits)
                if step == 1:
                    cache.reorder_cache(order)
                    own = own[order]
            said.append(torch.stack(logits))
    torch.testing.assert_close(said[1], said[0], atol=1e-4, rtol=0)
    assert graphs() == 1


def test_a_prompt_in_pieces(tiny_models):
    """`generate` would compile each piece; one that is pruned runs as it is."""
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 30]])
    with prune(model, "divprune", keep=0.5):
        wanted = model.generate(**inputs, **GREEDY, **LOGITS, prefill_chunk_size=50)
        same(model.generate(**inputs, **compiled(), prefill_chunk_size=50), wanted)
    assert graphs() == 1


@pytest.mark.nightly  # a graph for each part of each layer
def test_steps_that_break_into_several_graphs():
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs(BATCHES["padded"])
    model.model.language_model.layers[3].mlp.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    how = compiled()
    how["compile_config"].fullgraph = False
    with attach(model, "divprune+fastv", "compact"):
        wanted = model.generate(**inputs, **GREEDY, **LOGITS)
        same(model.generate(**inputs, **how), wanted)
    assert counters["graph_break"]


def test_steps_in_the_stead_of_graphs(tiny_models):
    """Where torch is told to run what is compiled as it is, the steps are the same."""
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    with attach(model, "divprune+fastv", "compact"), torch.compiler.set_stance("force_eager"):
        same(model.generate(**inputs, **compiled()), model.generate(**inputs, **GREEDY, **LOGITS))
    assert not graphs()


@pytest.mark.parametrize(
    ("what", "fullgraph"),
    [(lambda model: model, False), (lambda model: model.__call__, True), (lambda model: model.forward, True)],
)
def test_a_graph_made_before_pruning_is_not_used(what, fullgraph):
    """It was traced without hooks, and nothing of the model itself is a graph."""
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs(BATCHES["one"])
    outside = torch.compile(what(model), backend="eager", fullgraph=fullgraph)
    with torch.no_grad():
        model(**inputs)
        dense = outside(**inputs).logits
        with prune(model, "fastv", keep=0.3), pytest.raises(Exception, match="compiled model cannot be pruned"):
            outside(**inputs)
        torch.testing.assert_close(outside(**inputs).logits, dense)


@pytest.mark.parametrize(
    ("name", "plan", "why"),
    [
        ("gemma3", "divprune", "StaticSlidingWindowLayer"),
        ("mistral3", "divprune", "StaticSlidingWindowLayer"),
        ("llava", "dycoke_kv", "stage at every decoding step"),
    ],
)
def test_refusals(name, plan, why, tiny_models):
    family = FAMILIES[name]
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    with prune(model, plan), pytest.raises(Unsupported, match=why):
        model.generate(**inputs, **compiled())


def test_kernels_whose_masks_are_no_tensors_are_refused(tiny_models, monkeypatch):
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    with torch.no_grad(), prune(model, "divprune", keep=0.5):
        cache = static(model, 100)
        model(**inputs, **{CACHE: cache})
        steps = model.get_compiled_call(compiled()["compile_config"])
        monkeypatch.setattr(model.model.language_model.config, "_attn_implementation_internal", "flash_attention_2")
        with pytest.raises(Unsupported, match=r"runs flash_attention_2\. Load it with attn_implementation='sdpa', or"):
            steps(input_ids=torch.tensor([[5]]), **{CACHE: cache})
