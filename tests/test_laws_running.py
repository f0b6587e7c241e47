"""Laws 7 and 8: the ways people run a model work, or refuse with the reason."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import BertConfig, BertModel, DynamicCache, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from tests.oracle import oracle_logits
from tests.test_laws import BATCHES, GREEDY, attach, kept_by_layer
from tests.tiny import FAMILIES, IMAGE, Picture
from tokenprune import BadInput, MissingSignal, Selection, Uniform, Unsupported, prune
from tokenprune.methods.base import Method

pytestmark = pytest.mark.laws
PLANS = ["divprune", "fastv", "fopru", "divprune+fastv", "late"]
POLICIES = ["original", "compact"]


def grown(inputs, sequences):
    """The inputs with `sequences` in place of input_ids; what came after the prompt is text."""
    more = sequences.shape[1] - inputs["input_ids"].shape[1]
    result = dict(inputs) | {"input_ids": sequences}
    for name in ("attention_mask", "mm_token_type_ids"):
        if name in inputs:
            added = inputs[name].new_full((len(sequences), more), int(name == "attention_mask"))
            result[name] = torch.cat([inputs[name], added], dim=1)
    return result


@pytest.mark.parametrize("positions", POLICIES)
@pytest.mark.parametrize("plan", PLANS)
def test_beam_search(family, tiny_models, plan, positions):
    """Each returned sequence's score is the oracle's: reordering moved keys, padding and shifts together."""
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    length = inputs["input_ids"].shape[1]
    with attach(model, plan, positions) as run:
        out = model.generate(**inputs, **GREEDY, num_beams=3, output_scores=True, return_dict_in_generate=True)
        kept = {at: rows[::3] for at, rows in kept_by_layer(run).items()}
    logits = oracle_logits(model, grown(inputs, out.sequences), kept, family.placeholder, positions == "compact")
    chosen = logits.log_softmax(-1)[:, length - 1 : -1].gather(2, out.sequences[:, length:, None]).squeeze(-1)
    torch.testing.assert_close(out.sequences_scores, chosen.sum(1) / chosen.shape[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("plan", PLANS)
def test_sampling_with_several_sequences(family, tiny_models, plan):
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    length = inputs["input_ids"].shape[1]
    torch.manual_seed(0)
    sampled = GREEDY | {"do_sample": True, "num_return_sequences": 2}
    with attach(model, plan) as run:
        out = model.generate(**inputs, **sampled, output_logits=True, return_dict_in_generate=True)
        kept = kept_by_layer(run)
    picked = torch.tensor([0, 0, 1, 1])
    single = {k: v[picked] for k, v in inputs.items() if k not in ("pixel_values", "image_grid_thw")}
    parts = [oracle_logits_of_row(family, model, inputs, single, out.sequences, kept, i) for i in range(4)]
    for step, scores in enumerate(out.logits):
        expected = torch.stack([part[length - 1 + step] for part in parts])
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


def oracle_logits_of_row(family, model, inputs, single, sequences, kept, i):
    """Oracle for one sampled sequence: the whole batch again, with that sequence in its row's place."""
    row = i // 2
    ids = inputs["input_ids"].new_full((2, sequences.shape[1]), 5)
    ids[:, : inputs["input_ids"].shape[1]] = inputs["input_ids"]
    ids[row] = sequences[i]
    own = {at: [rows[0], rows[2]] for at, rows in kept.items()}
    return oracle_logits(model, grown(inputs, ids), own, family.placeholder)[row]


@pytest.mark.parametrize("positions", POLICIES)
@pytest.mark.parametrize("plan", PLANS)
def test_second_turn_reuses_the_cache(family, tiny_models, plan, positions):
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    with attach(model, plan, positions) as run:
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        kept = kept_by_layer(run)
        question = torch.tensor([[11, 12, 13, 14], [21, 22, 23, 24]])
        ids = torch.cat([first.sequences, question], dim=1)
        follow = grown(inputs, ids)
        second = model.generate(
            input_ids=ids,
            attention_mask=follow["attention_mask"],
            past_key_values=first.past_key_values,
            **GREEDY,
            output_logits=True,
            return_dict_in_generate=True,
        )
    whole = grown(inputs, second.sequences)
    expected = oracle_logits(model, whole, kept, family.placeholder, positions == "compact")
    for step, scores in enumerate(second.logits):
        torch.testing.assert_close(scores, expected[:, ids.shape[1] - 1 + step], atol=1e-4, rtol=0)


@pytest.mark.parametrize("positions", POLICIES)
@pytest.mark.parametrize("plan", PLANS)
def test_manual_loop_without_position_ids(family, tiny_models, plan, positions):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    length = inputs["input_ids"].shape[1]
    with torch.no_grad(), attach(model, plan, positions) as run:
        out = model(**inputs, use_cache=True)
        kept, logits, ids = kept_by_layer(run), [out.logits[:, -1]], inputs["input_ids"]
        for _ in range(3):
            token = logits[-1][:, :80].argmax(-1, keepdim=True)
            ids = torch.cat([ids, token], dim=1)
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits[:, -1])
    expected = oracle_logits(model, grown(inputs, ids), kept, family.placeholder, positions == "compact")
    torch.testing.assert_close(torch.stack(logits, 1), expected[:, length - 1 :], atol=1e-4, rtol=0)


@pytest.mark.parametrize("plan", PLANS)
def test_assisted_decoding_keeps_what_greedy_keeps(family, tiny_models, plan):
    """Drafted tokens stand in the first forward; the query row must be the prompt's last token, not a draft."""
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5, 5]])
    inputs["input_ids"][0, -4:] = inputs["input_ids"][0, -8:-4]
    with torch.no_grad(), attach(model, plan) as run:
        greedy = model.generate(**inputs, **GREEDY)
        kept = [k[0].tolist() for k in run.kept]
        assisted = model.generate(**inputs, **GREEDY, prompt_lookup_num_tokens=3)
        assert [k[0].tolist() for k in run.kept] == kept
        assert torch.equal(assisted, greedy)


@pytest.mark.parametrize("plan", PLANS)
def test_labels_and_log_likelihood_keep_the_prompts_length(family, tiny_models, plan):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    with torch.no_grad(), attach(model, plan) as run:
        out = model(**inputs, labels=labels, use_cache=False, output_hidden_states=True)
        kept = kept_by_layer(run)
        assert {tuple(h.shape[:2]) for h in out.hidden_states} == {tuple(labels.shape)}
    expected = oracle_logits(model, inputs, kept, family.placeholder)
    assert out.logits.shape[:2] == labels.shape
    loss = torch.nn.functional.cross_entropy(expected[0, -5:-1], labels[0, -4:])
    torch.testing.assert_close(out.loss, loss, atol=1e-4, rtol=0)


@pytest.mark.parametrize("plan", PLANS)
def test_gradient_checkpointing_gives_the_same_gradients(family, plan):
    gradients = []
    for checkpointing in (False, True):
        model, inputs = family.build().train(), family.inputs(BATCHES["one"])
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with attach(model, plan):
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("attention", ["eager"])
@pytest.mark.parametrize("plan", PLANS)
def test_signals_do_not_depend_on_the_kernel(family, tiny_models, plan, attention):
    inputs = family.inputs(BATCHES["padded"])
    found = []
    for kernel in ("sdpa", attention):
        with torch.no_grad(), attach(tiny_models(family, kernel), plan) as run:
            logits = tiny_models(family, kernel)(**inputs).logits[:, -1]
            found.append(([[row.tolist() for row in rows] for rows in run.kept], logits))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=0)


def test_an_image_in_the_second_turn(tiny_models):
    """The first turn is text only and padded: its padding stays hidden in the layers that are shortened later."""
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs([[9, Picture(6, 6), 4], [5, Picture(6, 6), 4]])
    first = 6
    start = {k: v[:, :first] for k, v in inputs.items() if k != "pixel_values"}
    rest = inputs | {"input_ids": inputs["input_ids"][:, first:]}
    for plan in PLANS:
        with torch.no_grad(), attach(model, plan) as run:
            cache = model(**start, use_cache=True).past_key_values
            logits = model(**rest, past_key_values=cache).logits[:, -1]
            kept = {at: [row + first for row in rows] for at, rows in kept_by_layer(run).items()}
        expected = oracle_logits(model, inputs, kept, family.placeholder)[:, -1]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_tuples_instead_of_outputs(family, tiny_models):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    with torch.no_grad(), prune(model, "fastv", keep=0.3):
        assert torch.equal(model(**inputs, return_dict=False)[0], model(**inputs).logits)


def test_two_threads_on_one_model(family, tiny_models):
    model = tiny_models(family)
    prompts = [family.inputs([[3, Picture(4, 6), 5]], seed) for seed in range(6)]
    for plan in ("fopru", "fastv"):
        with attach(model, plan):
            alone = [model.generate(**p, **GREEDY).tolist() for p in prompts]
            with ThreadPoolExecutor(2) as pool:
                together = list(pool.map(lambda p: model.generate(**p, **GREEDY).tolist(), prompts))
        assert together == alone


def test_text_only_prompts_run_unpruned(family, tiny_models):
    model, inputs = tiny_models(family), family.inputs([[7], [4]])
    with torch.no_grad():
        expected = model.generate(**inputs, **GREEDY)
        with prune(model, "fastv", keep=0.3) as run:
            assert torch.equal(model.generate(**inputs, **GREEDY), expected)
            with pytest.raises(BadInput, match="Nothing has been pruned yet"):
                run.report()


# Refusals. Each names the thing and what to do.


def test_refuses_static_cache(family, tiny_models):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    cache = StaticCache(config=model.config.text_config, max_cache_len=64)
    with prune(model, "uniform", keep=0.5), pytest.raises(Unsupported) as error:
        model(**inputs, past_key_values=cache)
    assert str(error.value) == "tokenprune cannot shorten a StaticCache. Use DynamicCache, the default."


def test_refuses_sliding_and_offloaded_caches(family, tiny_models):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    sliding = DynamicCache()
    sliding.layers = [DynamicSlidingWindowLayer(sliding_window=8) for _ in range(6)]
    offloaded = DynamicCache()
    offloaded.offloading = True  # the constructor's own flag wants a GPU
    with prune(model, "uniform", keep=0.5):
        with pytest.raises(Unsupported) as error:
            model(**inputs, past_key_values=sliding)
        assert str(error.value) == (
            "tokenprune cannot shorten a cache of DynamicSlidingWindowLayer layers. "
            "Use DynamicCache with full attention."
        )
        with pytest.raises(Unsupported) as error:
            model(**inputs, past_key_values=offloaded)
        assert str(error.value) == (
            "tokenprune cannot shorten an offloaded cache yet. Use DynamicCache without offloading."
        )


def test_refuses_sliding_window_layers():
    model = FAMILIES["qwen2_5_vl"].build()
    model.config.text_config.layer_types[2] = "sliding_attention"
    with pytest.raises(Unsupported) as error:
        prune(model, "uniform", keep=0.5)
    assert str(error.value) == (
        "This model has sliding_attention layers, which cannot be pruned yet. Use full attention."
    )


def test_refuses_an_unsupported_model():
    model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(Unsupported) as error:
        prune(model, "uniform", keep=0.5)
    assert str(error.value) == ("tokenprune cannot prune model type 'bert'. Supported model types: llava, qwen2_5_vl.")
    with pytest.raises(Unsupported, match="an object of type Linear"):
        prune(torch.nn.Linear(2, 2), "uniform", keep=0.5)


def test_refuses_a_pruned_cache_without_the_run(family, tiny_models):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    with torch.no_grad():
        with prune(model, "uniform", keep=0.5):
            out = model(**inputs, use_cache=True)
            with pytest.raises(Unsupported, match="Call the model, not its text model"):
                model.model.language_model(inputs_embeds=torch.zeros(1, 1, 64), past_key_values=out.past_key_values)
        with pytest.raises(Unsupported, match="filled by a pruned model"):
            model(input_ids=torch.tensor([[5]]), past_key_values=out.past_key_values)


def test_refuses_to_crop_into_the_prompt(family, tiny_models):
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


def test_refuses_a_prepared_mask_and_embeddings(family, tiny_models):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    length = inputs["input_ids"].shape[1]
    with torch.no_grad(), prune(model, "uniform", keep=0.5):
        with pytest.raises(Unsupported, match="2-D attention_mask"):
            model(**inputs | {"attention_mask": torch.ones(1, 1, length, length).tril() > 0})
        with pytest.raises(Unsupported, match="Pass input_ids, not inputs_embeds"):
            model(inputs_embeds=torch.zeros(1, 4, 64))


@pytest.mark.parametrize("size", [10, 11, 17])
def test_refuses_chunked_prefill(family, tiny_models, size):
    """Also where the cut runs between two rows of the grid (11, 17), so that a piece looks like a smaller image."""
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    with prune(model, "uniform", keep=0.5), pytest.raises(Unsupported, match="one piece"):
        model.generate(**inputs, **GREEDY, prefill_chunk_size=size)


def test_refuses_to_be_compiled(family):
    model, inputs = family.build(), family.inputs(BATCHES["one"])
    with prune(model, "fastv", keep=0.5), pytest.raises(Exception, match="compiled model cannot be pruned"):
        torch.compile(model, backend="eager")(**inputs)


def test_refuses_pixels_without_a_placeholder(family, tiny_models):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    inputs["input_ids"][inputs["input_ids"] == IMAGE] = 7
    with prune(model, "uniform", keep=0.5), pytest.raises(BadInput) as error:
        model(**inputs)
    assert str(error.value) == (
        "There is no image in the prompt: pixel_values was given, but input_ids has no placeholder."
    )


def test_saliency_needs_the_encoder_to_run(family, tiny_models):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    pixels = {k: inputs[k] for k in ("pixel_values", "image_grid_thw") if k in inputs}
    with torch.no_grad():
        features = model.model.get_image_features(**pixels, return_dict=True)
        rest = {k: v for k, v in inputs.items() if k not in pixels}
        with prune(model, "fopru", keep=0.5):
            if family.name == "llava":
                with pytest.raises(MissingSignal, match="did not run for this prompt"):
                    model(**rest, mm_encoder_outputs={"image": features})
            model.model.get_image_features(**pixels)
            with pytest.raises(MissingSignal, match="Run one prompt at a time"):
                model(**inputs)
            model(**inputs)


def test_a_method_that_breaks_the_contract(family, tiny_models):
    """A user's own method runs like ours, and a wrong index is refused instead of giving a wrong answer."""
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    answers = {
        "descending": torch.tensor([[3, 1]]),
        "twice": torch.tensor([[1, 1]]),
        "too far": torch.tensor([[1, 99]]),
        "negative": torch.tensor([[-1, 2]]),
        "type": torch.tensor([[1.0, 2.0]]),
        "spans": torch.tensor([[1, 2], [1, 2]]),
    }
    for index in answers.values():
        with pytest.raises(BadInput, match="The method 'given' returned a wrong index"), prune(model, Given(index)):
            model(**inputs)
    with torch.no_grad(), prune(model, Given(torch.tensor([[1, 4]]))) as run:
        model(**inputs)
        assert len(run.kept[0][0]) == 2
    merging = Given(torch.tensor([[1, 4]]), merge=True)
    with pytest.raises(Unsupported, match="given merges tokens"), prune(model, merging):
        model(**inputs)


class Given(Method):
    """Returns the index it was built with."""

    name, paper, year, kind = "given", "test", 0, "baseline"

    def __init__(self, index, merge=False):
        super().__init__()
        object.__setattr__(self, "index", index)
        object.__setattr__(self, "merge", merge)

    def select(self, view):
        weights = torch.full((1, self.index.shape[1], view.count), 1 / view.count) if self.merge else None
        return Selection(self.index, weights)


def test_a_refused_prompt_leaves_no_saliency_behind(family, tiny_models):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    with torch.no_grad(), prune(model, "fopru", keep=0.5) as run:
        model(**inputs)
        expected = run.kept[0][0].tolist()
        with pytest.raises(Unsupported):
            model.generate(**inputs, **GREEDY, prefill_chunk_size=10)
        broken = family_module(model).register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**inputs)
        broken.remove()
        model(**inputs)
        assert run.kept[0][0].tolist() == expected


def family_module(model):
    """The last module that the vision encoder runs, after its attention has been read."""
    base = model.model
    return base.visual.merger if hasattr(base, "visual") else base.vision_tower.get_submodule(_last_norm(base))


def _last_norm(base):
    return next(name for name, _ in base.vision_tower.named_modules() if name.endswith("post_layernorm"))


def test_stage_places(family, tiny_models):
    model = tiny_models(family)
    with pytest.raises(BadInput, match="past the last layer: this model has layers 0 to 5"):
        prune(model, Uniform(keep=0.5), at=6)
    with pytest.raises(BadInput, match=r"at=0 is too early for fastv.*Give at=1 or later"):
        prune(model, "fastv", at=0)
    with pytest.raises(BadInput, match="at=-1 is not a layer"):
        prune(model, "uniform", at=-1)
    with pytest.raises(BadInput, match="No stages"):
        prune(model, [])
    with pytest.raises(BadInput, match=r"Unknown positions 'orignal'. Did you mean 'original'\?"):
        prune(model, "uniform", positions="orignal")
