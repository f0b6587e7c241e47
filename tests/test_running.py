"""Law 7: the ways people run a model give what the oracle gives."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.draw import cases
from tests.laws import (
    ANCHORS,
    BATCHES,
    FAMILY,
    GREEDY,
    POLICIES,
    attach,
    by_anchor,
    cells,
    done,
    few_families,
    kept_by_layer,
    times,
    works,
)
from tests.oracle import oracle_logits
from tests.tiny import FAMILIES, Picture
from tests.tiny.base import llama
from tokenprune import BadInput, Unsupported, prune

pytestmark = pytest.mark.laws
PLANS = ["fopru", "divprune+fastv"]
ALL = cases("family, plan", cells(PLANS), by_anchor)
# Merged tokens and tokens that wait beside the layers as well, on the families that differ.
MORE = cases(
    "family, plan, positions",
    times(cells([*PLANS, "tome", "sparsevlm", "lvlm_csp", "pyramiddrop", "feather"], everywhere=PLANS), POLICIES),
    by_anchor,
)


def several(family):
    return family.inputs(
        [[3, Picture(4, 6), 5], [2, Picture(3, 4), 4]] if family.beams_one_image else BATCHES["padded"]
    )


@MORE
def test_beam_search(family, tiny_models, plan, positions):
    """Each returned sequence's score is the oracle's: reordering moved keys, padding and shifts together."""
    model, inputs = tiny_models(family), several(family)
    length = inputs["input_ids"].shape[1]
    with attach(model, plan, positions) as run:
        out = model.generate(**inputs, **GREEDY, num_beams=3, output_scores=True, return_dict_in_generate=True)
        found = done(run, every=3)
    logits = oracle_logits(family, model, family.grown(inputs, out.sequences), compact=positions == "compact", **found)
    chosen = logits.log_softmax(-1)[:, length - 1 : -1].gather(2, out.sequences[:, length:, None]).squeeze(-1)
    torch.testing.assert_close(out.sequences_scores, chosen.sum(1) / chosen.shape[1], atol=1e-4, rtol=0)


@ALL
def test_sampling_with_several_sequences(family, tiny_models, plan):
    model, inputs = tiny_models(family), several(family)
    length = inputs["input_ids"].shape[1]
    torch.manual_seed(0)
    sampled = GREEDY | {"do_sample": True, "num_return_sequences": 2}
    with attach(model, plan) as run:
        out = model.generate(**inputs, **sampled, output_logits=True, return_dict_in_generate=True)
        kept = {at: rows[::2] for at, rows in kept_by_layer(run).items()}
    for copy in range(2):
        sequences = out.sequences[copy::2]
        expected = oracle_logits(family, model, family.grown(inputs, sequences), kept)
        for step, scores in enumerate(out.logits):
            torch.testing.assert_close(scores[copy::2], expected[:, length - 1 + step], atol=1e-4, rtol=0)


@MORE
def test_second_turn_reuses_the_cache(family, tiny_models, plan, positions):
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    with attach(model, plan, positions, turns="accept") as run:
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        found = done(run)
        question = torch.tensor([[11, 12, 13, 14], [21, 22, 23, 24]])
        ids = torch.cat([first.sequences, question], dim=1)
        second = model.generate(
            input_ids=ids,
            attention_mask=family.grown(inputs, ids)["attention_mask"],
            past_key_values=first.past_key_values,
            **GREEDY,
            output_logits=True,
            return_dict_in_generate=True,
        )
    grown = family.grown(inputs, second.sequences)
    expected = oracle_logits(family, model, grown, compact=positions == "compact", **found)
    for step, scores in enumerate(second.logits):
        torch.testing.assert_close(scores, expected[:, ids.shape[1] - 1 + step], atol=1e-4, rtol=0)


def test_a_second_question_is_not_starved_in_silence(family, tiny_models):
    """What FastV kept for one question is refused to the next, unless asked for; DivPrune serves them all."""
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    question = torch.tensor([[11, 12, 13]])
    with torch.no_grad(), prune(model, "fastv", keep=0.3):
        cache = model(**inputs, use_cache=True).past_key_values
        model(input_ids=question[:, :1], past_key_values=cache)
        with pytest.raises(Unsupported, match=r"fastv chose for an earlier piece of the prompt.*turns='accept'"):
            model(input_ids=question, past_key_values=cache)
    with torch.no_grad(), prune(model, "divprune", keep=0.3):
        cache = model(**inputs, use_cache=True).past_key_values
        model(input_ids=question, past_key_values=cache)
    with pytest.raises(BadInput, match=r"Unknown turns 'acept'. Did you mean 'accept'\?"):
        prune(model, "fastv", turns="acept")


@cases("family, plan, positions", times(cells(PLANS), POLICIES), by_anchor)
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
    expected = oracle_logits(family, model, family.grown(inputs, ids), kept, positions == "compact")
    torch.testing.assert_close(torch.stack(logits, 1), expected[:, length - 1 :], atol=1e-4, rtol=0)


@ALL
def test_prompt_lookup_keeps_what_greedy_keeps(family, tiny_models, plan):
    """Drafted tokens stand in the first forward; the query row must be the prompt's last token, not a draft."""
    if "drafts" in family.fails:
        pytest.skip("transformers itself fails")
    if family.name.startswith("paligemma"):
        pytest.skip("transformers counts drafts as part of PaliGemma's two-way prefix: unpruned it is not exact either")
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5, 5]])
    inputs["input_ids"][0, -4:] = inputs["input_ids"][0, -8:-4]
    with torch.no_grad(), attach(model, plan) as run:
        greedy = model.generate(**inputs, **GREEDY | {"max_new_tokens": 8})
        kept = [k[0].tolist() for k in run.kept]
        assisted = model.generate(**inputs, **GREEDY | {"max_new_tokens": 8}, prompt_lookup_num_tokens=3)
        assert [k[0].tolist() for k in run.kept] == kept
        assert torch.equal(assisted, greedy)


@ALL
def test_draft_model(family, tiny_models, plan):
    """A text-only model drafts; the pruned model accepts and rejects, cropping its cache."""
    if family.extra(family.inputs([[3]])):
        pytest.skip("transformers hands the token types of this family to the draft model, which refuses them")
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5]])
    torch.manual_seed(1)
    draft = LlamaForCausalLM(llama(num_hidden_layers=1)).eval()
    with torch.no_grad(), attach(model, plan) as run:
        greedy = model.generate(**inputs, **GREEDY | {"max_new_tokens": 8})
        kept = [k[0].tolist() for k in run.kept]
        assisted = model.generate(**inputs, **GREEDY | {"max_new_tokens": 8}, assistant_model=draft)
        assert [k[0].tolist() for k in run.kept] == kept
        assert torch.equal(assisted, greedy)


@ALL
def test_labels_and_log_likelihood_keep_the_prompts_length(family, tiny_models, plan):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    with torch.no_grad(), attach(model, plan) as run:
        out = model(**inputs, labels=labels, use_cache=False, output_hidden_states=True)
        kept = kept_by_layer(run)
        assert {tuple(h.shape[:2]) for h in out.hidden_states} == {tuple(labels.shape)}
    expected = oracle_logits(family, model, inputs, kept)
    assert out.logits.shape[:2] == labels.shape
    loss = torch.nn.functional.cross_entropy(expected[0, -5:-1], labels[0, -4:])
    torch.testing.assert_close(out.loss, loss, atol=1e-4, rtol=0)


@few_families
def test_gradient_checkpointing_gives_the_same_gradients(family):
    gradients = []
    for checkpointing in (False, True):
        model, inputs = family.build().train(), family.inputs(BATCHES["one"])
        labels = inputs["input_ids"].clone()
        labels[:, :-4] = -100
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with attach(model, "divprune+fastv"):
            if checkpointing and "__call__" in vars(GradientCheckpointingLayer):
                with pytest.raises(Unsupported, match="needs a newer transformers"):
                    model(**inputs, labels=labels)
                return
            model(**inputs, labels=labels).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@cases("family, plan", cells(["fopru", "fastv", "sparsevlm", "divprune+fastv"], everywhere=["fastv"]), by_anchor)
def test_padding_on_the_right(family, tiny_models, plan):
    """Law 4 for batches as they are trained on: each row keeps and says what it does alone."""
    model, inputs = tiny_models(family), family.inputs(BATCHES["mixed"])
    padding = inputs["attention_mask"].eq(0).sum(1).tolist()
    length = inputs["input_ids"].shape[1]
    right = {
        name: torch.stack([row.roll(-p) for row, p in zip(value, padding, strict=True)])
        if value.shape == inputs["input_ids"].shape
        else value
        for name, value in inputs.items()
    }
    with torch.no_grad(), attach(model, plan) as run:
        together, kept = model(**right, use_cache=False).logits, run.kept
        for i, row in enumerate(BATCHES["mixed"]):
            alone = model(**family.inputs([row], first=i), use_cache=False).logits[0, -1]
            if len(row) > 1:
                assert [stage[0].tolist() for stage in run.kept] == [stage[i].tolist() for stage in kept], f"row {i}"
            torch.testing.assert_close(together[i, length - padding[i] - 1], alone, atol=1e-4, rtol=0)


@few_families
def test_an_image_in_the_second_turn(family, tiny_models):
    """The first turn is text only and padded: its padding stays hidden in the layers that are shortened later."""
    if not family.counts_padding or family.name.startswith("paligemma"):
        pytest.skip("M-RoPE models number later images from the first turn's state; PaliGemma's prefix is one piece")
    rows = [[9, Picture(4, 6), 4], [5, Picture(4, 6), 4]]
    model, inputs = tiny_models(family), family.inputs(rows)
    first = 6
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    rest = {k: v[:, first:] if k == "token_type_ids" else v for k, v in inputs.items()} | {"input_ids": ids[:, first:]}
    for plan in ("divprune+fastv", "fopru"):
        if not works(family, plan):
            continue
        with torch.no_grad(), attach(model, plan) as run:
            cache = model(input_ids=ids[:, :first], attention_mask=mask[:, :first], use_cache=True).past_key_values
            logits = model(**rest, past_key_values=cache).logits[:, -1]
            kept = {at: [row + first for row in rows] for at, rows in kept_by_layer(run).items()}
        positions = torch.arange(ids.shape[1])[None]
        expected = oracle_logits(family, model, inputs | {"position_ids": positions}, kept)[:, -1]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_tuples_instead_of_outputs(family, tiny_models):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    with torch.no_grad(), prune(model, "fastv", keep=0.3):
        assert torch.equal(model(**inputs, return_dict=False)[0], model(**inputs).logits)


@cases("family", FAMILY, lambda family: family.name in ANCHORS)
def test_two_threads_on_one_model(family, tiny_models):
    model = tiny_models(family)
    prompts = [family.inputs([[3, Picture(4, 6), 5]], seed) for seed in range(6)]
    for plan in ("fopru", "fastv"):
        if not works(family, plan):
            continue
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


def test_one_picture_several_questions(family, tiny_models):
    """Features that the pruned model encoded once serve later prompts, also after another picture was encoded."""
    if not family.counts_padding:
        pytest.skip("M-RoPE needs the pixel inputs' grids in every forward")
    if "mm_encoder_outputs" not in inspect.signature(family.model_class.forward).parameters:
        pytest.skip("this version of transformers takes no features beside the prompt for this family")
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    other = family.inputs(BATCHES["one"], seed=3)
    own = ("pixel_values", "image_sizes", "pixel_attention_mask", "image_grid_thw", "image_merge_sizes")
    names = [n for n in own if n in inputs]
    with torch.no_grad(), prune(model, "fopru" if works(family, "fopru") else "divprune", keep=0.3) as run:
        expected = model(**inputs).logits
        kept = run.kept[0][0].tolist()
        features = model.model.get_image_features(**{n: inputs[n] for n in names}, return_dict=True)
        rest = {k: v for k, v in inputs.items() if k not in names}
        for _ in range(2):
            model(**other)
            torch.testing.assert_close(model(**rest, mm_encoder_outputs={"image": features}).logits, expected)
            assert run.kept[0][0].tolist() == kept
    with torch.no_grad(), prune(model, "divprune", keep=0.3), pytest.raises(Unsupported, match="made before prune"):
        model(**rest, mm_encoder_outputs={"image": features})


@cases("family, dtype", times(FAMILY, [torch.bfloat16, torch.float16]), by_anchor)
def test_half_precision(family, dtype):
    """Against the oracle in the same precision: within 3 % of the logits' range (bf16 has 8 bits, float16 11)."""
    model = family.build().to(dtype)
    inputs = family.inputs(BATCHES["one"])
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    bound = {torch.bfloat16: 0.03, torch.float16: 0.004}[dtype]
    with torch.no_grad(), attach(model, "divprune+fastv") as run:
        logits = model(**inputs).logits[:, -1].float()
    expected = oracle_logits(family, model, inputs, kept_by_layer(run))[:, -1].float()
    assert (logits - expected).abs().max() <= bound * expected.abs().max()


def test_families_are_all_here():
    """Every family of the package has tiny models, so that no cell of the matrix is untested."""
    from tokenprune.families.registry import all_families, family_of

    served = {family_of(tiny.build()).name for tiny in FAMILIES.values()}
    assert served == set(all_families())
