"""Prompts, masks, labels and ways of running that other people have: right, or refused with the mend.

References: `tests/oracle.py` (the full-length model, masked), the model unpruned, or the prompt without its answer.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import re
import threading
import weakref
from itertools import product

import pytest
import torch
from transformers import ColPaliConfig, ColPaliForRetrieval, DynamicCache, LlamaForCausalLM

from tests.draw import cases
from tests.laws import (
    ANCHORS,
    BATCHES,
    CACHE,
    GREEDY,
    LOGITS,
    METHODS,
    PLANS,
    POLICIES,
    attach,
    done,
    kept_by_layer,
    works,
)
from tests.oracle import oracle_logits
from tests.tiny import FAMILIES, Picture
from tests.tiny.base import IMAGE, llama
from tokenprune import BadInput, DivPrune, FastV, Random, Stage, TokenpruneError, Unsupported, prune, scenes, select
from tokenprune.chat import Chat
from tokenprune.engine.encoder_reader import EncoderReader
from tokenprune.signals import taps

pytestmark = pytest.mark.laws
DEAD = r"What follows column \d+ of row \d is predicted from that image token, which \S+ drops\. Put text between"
STAGED = "divprune+fastv"


def cut_behind_the_image(family, inputs):
    """The same prompt without the text after its last placeholder, and the column of that one."""
    last = int(torch.isin(inputs["input_ids"][0], torch.tensor(family.placeholder)).nonzero().max())
    return {k: v[:, : last + 1] if k.endswith(("ids", "mask")) else v for k, v in inputs.items()}, last


def right(family, model, inputs, logits, run, positions="original", columns=None):
    """Whether logits [B, n, V] at `columns` (default: all that are alive) are those of the masked full-length model."""
    with run.lift():
        expected = oracle_logits(family, model, inputs, compact=positions == "compact", **done(run))
    alive = inputs["attention_mask"].bool() & ~torch.isin(inputs["input_ids"], torch.tensor(family.placeholder))
    for row, kept in enumerate(kept_by_layer(run)[run.stages[-1].at]):
        alive[row, kept] = True
    if columns is None:
        torch.testing.assert_close(logits[alive], expected[alive], atol=1e-4, rtol=0)
    else:
        assert alive[:, columns].all()
        torch.testing.assert_close(logits, expected[:, columns], atol=1e-4, rtol=0)


# 1: what is read is alive.


ENDING = ("llava", "qwen2_5_vl", "gemma3")
OWN = [plan for plan in PLANS if plan == METHODS[plan].name]


@cases("name, plan", [pair for pair in product(ENDING, OWN) if works(FAMILIES[pair[0]], pair[1])], lambda name, _: name)
def test_a_prompt_that_ends_with_an_image(name, plan, tiny_models):
    """Each method answers from a token that is there, or refuses."""
    family = FAMILIES[name]
    model, inputs = tiny_models(family), family.inputs([[5, Picture(4, 6)]])
    inputs, last = cut_behind_the_image(family, inputs)
    with torch.no_grad(), attach(model, plan) as run:
        try:
            logits = model(**inputs).logits
        except TokenpruneError as error:
            refused = str(error)
        else:
            refused = None
            right(family, model, inputs, logits[:, -1:], run, columns=[last])
    assert refused is None or re.search(f"{DEAD}|needs text after the image", refused)


@pytest.mark.parametrize("name", ENDING)
def test_a_prompt_that_ends_with_an_image_that_is_dropped_or_kept(name, tiny_models):
    """keep=0 is refused, in generate() too; keep=1.0 changes nothing."""
    family = FAMILIES[name]
    model, inputs = tiny_models(family), family.inputs([[5, Picture(4, 6)]])
    inputs, _ = cut_behind_the_image(family, inputs)
    with torch.no_grad():
        with prune(model, "random", keep=0), pytest.raises(Unsupported, match=DEAD):
            model.generate(**inputs, **GREEDY)
        with prune(model, "random", keep=1.0):
            whole = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, whole)


def test_only_the_row_that_ends_with_an_image_is_named(tiny_models):
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5], [8, Picture(4, 6)]])
    inputs["input_ids"] = inputs["input_ids"][:, :-1]  # the end of the second picture
    inputs["attention_mask"] = inputs["attention_mask"][:, :-1]
    with torch.no_grad(), prune(model, "uniform", keep=3), pytest.raises(Unsupported, match="of row 1 is predicted"):
        model(**inputs)


def test_the_bundled_model_asked_before_the_picture():
    chat = Chat.load("scenes")
    ids = chat.processor.tokenizer("<s><user>what colour is the circle ?", return_tensors="pt")["input_ids"]
    given = chat.inputs(chat_picture(), scenes.QUESTION)
    image = given["input_ids"][given["input_ids"] == chat.model.config.image_token_id][None]
    prompt = {"input_ids": torch.cat([ids, image], 1), "pixel_values": given["pixel_values"]}
    prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
    last, outcomes = prompt["input_ids"].shape[1] - 1, set()
    for seed in range(6):
        with prune(chat.model, "random", keep=0.5, seed=seed), contextlib.suppress(Unsupported):
            answer = chat.model.generate(**prompt, max_new_tokens=2, do_sample=False, **LOGITS)
            assert answer.logits[0].abs().max() > 0
        kept = select("random", keep=0.5, seed=seed, features=torch.zeros(image.shape[1], 1)).index
        outcomes.add(ids.shape[1] + int(kept[-1]) == last)
    assert outcomes == {True, False}, "both an answer and a refusal were seen"


def chat_picture():
    from tokenprune.media.pictures import load_image

    return load_image(scenes.IMAGE)


def test_labels_right_behind_the_image(tiny_models):
    """The first word of a caption would score -log V, from zeros."""
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    _, last = cut_behind_the_image(family, inputs)
    labels = inputs["input_ids"].clone()
    labels[:, : last + 1] = -100
    with torch.no_grad(), prune(model, "uniform", keep=3), pytest.raises(Unsupported, match=DEAD):
        model(**inputs, labels=labels)
    labels[:, last + 1] = -100
    with torch.no_grad(), prune(model, "uniform", keep=3) as run:
        out = model(**inputs, labels=labels)
        right(family, model, inputs, out.logits, run)


def test_padding_on_the_right_is_not_answered_from(tiny_models):
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5], [3, Picture(4, 6), 9]])
    padding = int((inputs["attention_mask"][0] == 0).sum())
    for name in ("input_ids", "attention_mask"):
        inputs[name][0] = inputs[name][0].roll(-padding)
    with torch.no_grad():
        dense = model.generate(**inputs, **GREEDY)
        with prune(model, "uniform", keep=0.3), pytest.raises(Unsupported, match=r"Pad on the left: .*padding_side"):
            model.generate(**inputs, **GREEDY)
        with prune(model, "uniform", keep=1.0):
            assert torch.equal(model.generate(**inputs, **GREEDY), dense)
        with prune(model, "uniform", keep=0.3) as run:
            model(**inputs)
            alive = run.columns(5)[0]
        assert alive[alive >= 0].max() == inputs["input_ids"].shape[1] - padding - 1


# 2: what the mask hides stays hidden.


@cases(
    "name, plan, positions",
    list(product(ANCHORS, ["divprune", "fastv", "tome", "four stages"], POLICIES)),
    lambda name, *_: name,
)
def test_hidden_image_tokens(name, plan, positions, tiny_models):
    """Part of a picture, a whole picture, a word, in one batch; the prompt and every step."""
    family = FAMILIES[name]
    rows = [[3, Picture(4, 6), 5], [2, Picture(3, 4), 4, Picture(4, 3), 6], [4, Picture(4, 6), 3], [6]]
    model, inputs = tiny_models(family), family.inputs(rows)
    padding = inputs["attention_mask"].clone()
    hidden, media = inputs["attention_mask"], torch.isin(inputs["input_ids"], torch.tensor(family.placeholder))
    columns = [row.nonzero().flatten() for row in media]
    hidden[0, columns[0][3:8]] = 0
    hidden[1, columns[1][: len(columns[1]) // 3]] = 0
    hidden[1, columns[1][-1] + 2] = 0
    hidden[2, columns[2]] = 0
    if not family.counts_padding:  # its own positions are those of whole pictures; see what it makes without the hole
        inputs["position_ids"] = positions_of(family, model, inputs | {"attention_mask": padding})
    with torch.no_grad(), attach(model, plan, positions) as run:
        logits = model(**inputs).logits
        for row, kept in enumerate(run.kept[-1]):
            assert hidden[row, kept].all(), "hidden tokens are not there to keep"
        assert not len(run.kept[-1][2])
        right(family, model, inputs, logits, run, positions)
        if not family.counts_padding:
            return  # in generate() that model stumbles over the hole by itself
        out = model.generate(**inputs, **GREEDY, **LOGITS)
        then = done(run)
    grown = family.grown(inputs, out.sequences)
    if family.counts_padding:  # generate() does not count what is hidden
        grown["position_ids"] = (grown["attention_mask"].cumsum(1) - 1).clamp(min=0)
    expected = oracle_logits(family, model, grown, compact=positions == "compact", **then)
    length = inputs["input_ids"].shape[1]
    for step, scores in enumerate(out.logits):
        torch.testing.assert_close(scores, expected[:, length - 1 + step], atol=1e-4, rtol=0)


def positions_of(family, model, inputs):
    """Position ids [axes, B, L] that the model makes of a prompt."""
    seen = []
    handle = family.text_model(model).register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen[0]


def test_budgets_count_what_can_be_seen(tiny_models):
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    media = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()
    inputs["attention_mask"][0, media[:16]] = 0
    for keep, expected in ((0.5, 10), (7, 7), (20, 20)):
        with torch.no_grad(), prune(model, "divprune", keep=keep) as run:
            model(**inputs)
        assert len(run.kept[0][0]) == expected
        assert set(run.kept[0][0].tolist()) <= set(media[16:].tolist())


# 3: what the prompt alone would keep.

ASKING = [plan for plan in PLANS if plan == METHODS[plan].name and METHODS[plan].asks]


@cases("plan", ASKING, lambda _: None)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_an_answer_in_view_changes_nothing(name, plan, tiny_models):
    """Labels and prompt_length= tell where the answer begins; it scores what the prompt's own choice gives it."""
    family = FAMILIES[name]
    if not works(family, plan):
        pytest.skip("the family does not give the signals")
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 9], [2, Picture(4, 6), 14]])
    answer = 4
    prompt = {k: v[:, :-answer] if k.endswith(("ids", "mask")) else v for k, v in inputs.items()}
    labels = inputs["input_ids"].clone()
    labels[:, :-answer] = -100
    lengths = prompt["attention_mask"].sum(1)
    with torch.no_grad(), attach(model, plan) as run:
        model(**prompt)
        kept = [k.tolist() for k in run.kept[-1]]
        out = model(**inputs, labels=labels)
        assert [k.tolist() for k in run.kept[-1]] == kept
        right(family, model, inputs, out.logits, run)
        told = model(**inputs, prompt_length=lengths)
        assert [k.tolist() for k in run.kept[-1]] == kept
        assert torch.equal(told.logits, out.logits)
        model(**inputs, prompt_length=lengths.tolist())
        assert [k.tolist() for k in run.kept[-1]] == kept
        with pytest.raises(Unsupported, match=r"what is prompt and what is answer is not known.*prompt_length="):
            model(**inputs, labels=inputs["input_ids"])
        with pytest.raises(BadInput, match=r"prompt_length=\[3\.5\] does not fit"):
            model(**inputs, prompt_length=[3.5])
        with pytest.raises(BadInput, match=r"prompt_length=\[900, 900\] is out of range"):
            model(**inputs, prompt_length=900)


def test_a_likelihood_of_the_bundled_model():
    """The answer that FastV's own choice gives is as likely when it is scored as when it is said."""
    chat = Chat.load("scenes")
    inputs = chat.inputs(chat_picture(), scenes.QUESTION)
    with torch.no_grad(), prune(chat.model, "fastv", keep=0.1):
        out = chat.model.generate(**inputs, max_new_tokens=3, do_sample=False, **LOGITS)
        said = sum(
            float(logits.log_softmax(-1)[0, token])
            for logits, token in zip(out.logits, out.sequences[0, -len(out.logits) :], strict=True)
        )
        whole = dict(inputs) | {"input_ids": out.sequences, "attention_mask": torch.ones_like(out.sequences)}
        labels = out.sequences.clone()
        labels[:, : inputs["input_ids"].shape[1]] = -100
        scored = -float(chat.model(**whole, labels=labels).loss) * len(out.logits)
    assert scored == pytest.approx(said, abs=1e-3)


# 4, 5, 6: what only slices, later questions, no cache.


@pytest.mark.parametrize("plan", ["fastv", "sparsevlm", "divprune"])
def test_logits_to_keep_only_slices(plan, tiny_models):
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    with torch.no_grad(), attach(model, plan) as run:
        whole = model(**inputs).logits
        kept = [k.tolist() for k in run.kept[0]]
        for last in (1, 2, 3, torch.tensor([-2, -1]) + whole.shape[1]):
            some = model(**inputs, logits_to_keep=last).logits
            assert [k.tolist() for k in run.kept[0]] == kept
            n = last if isinstance(last, int) else len(last)
            torch.testing.assert_close(some, whole[:, -n:], atol=1e-6, rtol=0)
        with pytest.raises(Unsupported, match=DEAD):
            model(**inputs, logits_to_keep=12)


def test_a_question_as_long_as_its_logits(tiny_models):
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    question = torch.tensor([[11, 12, 13]])
    with torch.no_grad(), prune(model, "fastv", keep=0.3):
        for last in (1, 2, 3):
            cache = model(**inputs, use_cache=True)[CACHE]
            with pytest.raises(Unsupported, match=r"turns='accept'"):
                model(input_ids=question, logits_to_keep=last, **{CACHE: cache})


@cases(
    "name, plan",
    list(product(["llava", "qwen2_5_vl"], ["fastv", "sparsevlm", "cdpruner", STAGED, "divprune"])),
    lambda name, _: name,
)
def test_generate_without_a_cache(name, plan, tiny_models):
    """What the prompt chose stays chosen."""
    family = FAMILIES[name]
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    with torch.no_grad(), attach(model, plan) as run:
        cached = model.generate(**inputs, **GREEDY, **LOGITS)
        kept = [[k.tolist() for k in rows] for rows in run.kept]
        without = model.generate(**inputs, **GREEDY, **LOGITS, use_cache=False)
        assert [[k.tolist() for k in rows] for rows in run.kept] == kept
    assert torch.equal(cached.sequences, without.sequences)
    for a, b in zip(cached.logits, without.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


# 7: packed sequences.


@cases(
    "name, plan, keep",
    list(product(["llava", "qwen2_5_vl"], ["uniform", "fastv"], [0.5, 1.0])),
    lambda name, *_: name,
)
def test_packed_sequences_are_refused(name, plan, keep, tiny_models):
    family = FAMILIES[name]
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    length = inputs["input_ids"].shape[1]
    packed = {k: v for k, v in inputs.items() if k != "attention_mask"}
    starts = torch.cat([torch.arange(length - 4), torch.arange(4)])[None]
    packed["position_ids"] = starts if name == "llava" else starts.expand(4, 1, -1)
    with torch.no_grad(), prune(model, plan, keep=keep):
        with pytest.raises(Unsupported, match="it holds several sequences that must not see each other"):
            model(**packed, use_cache=False)
        straight = torch.arange(length)[None]
        model(**packed | {"position_ids": straight if name == "llava" else straight.expand(4, 1, -1)}, use_cache=False)


# 8, 9, 11: what a run tells.


def test_each_thread_sees_its_own_prompt(tiny_models):
    family = FAMILIES["llava"]
    model = tiny_models(family)
    prompts = [family.inputs([[n, Picture(4, 6), 12 - n]], seed=n) for n in range(2, 6)]
    alone, found, gate = {}, {}, threading.Barrier(len(prompts))
    with prune(model, [Stage(0, DivPrune(keep=0.5)), Stage(2, FastV(keep=0.4))]) as run:
        for n, inputs in enumerate(prompts):
            with torch.no_grad():
                model(**inputs)
            alone[n] = [[k.tolist() for k in rows] for rows in run.kept], [s.columns for s in run.spans]

        def work(n):
            with torch.no_grad():
                model(**prompts[n])
            gate.wait(timeout=60)  # all have run before any looks
            found[n] = [[k.tolist() for k in rows] for rows in run.kept], [s.columns for s in run.spans]
            assert run.report().final_tokens == len(run.kept[-1][0])

        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == alone
        assert len(run.kept) == 2, "a thread that ran nothing sees the last prompt of any"


def test_attention_maps_are_of_rows_and_columns_says_of_which(tiny_models):
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family, "eager"), family.inputs(BATCHES["padded"])
    with torch.no_grad(), prune(model, [Stage(2, Random(keep=0.5)), Stage(4, Random(keep=0.5))]) as run:
        out = model(**inputs, output_attentions=True)
        for layer, attention in enumerate(out.attentions):
            columns = run.columns(layer)
            assert columns.shape == (2, attention.shape[-1])
            for row in range(2):
                there = columns[row][columns[row] >= 0]
                assert torch.equal(there, there.unique())
                assert inputs["attention_mask"][row, there].all()
        last = [
            c[torch.isin(inputs["input_ids"][row, c.clamp(min=0)], torch.tensor(IMAGE)) & (c >= 0)]
            for row, c in enumerate(run.columns(5))
        ]
        assert [c.tolist() for c in last] == [k.tolist() for k in run.kept[-1]]


def test_hidden_states_of_some_layers(tiny_models):
    """By number, as newer versions take them."""
    family = FAMILIES["qwen2_5_vl"]
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    with torch.no_grad():
        dense = model(**inputs, output_hidden_states=[3, 5]).hidden_states
        if all(states is not None for states in dense):
            pytest.skip("this version of transformers takes no layer numbers")
        with prune(model, "fastv", keep=0.5):
            whole = model(**inputs, output_hidden_states=True).hidden_states
            some = model(**inputs, output_hidden_states=[3, 5]).hidden_states
    assert [s is None for s in some] == [s is None for s in dense]
    for states, expected in zip(some, whole, strict=True):
        assert states is None or torch.equal(states, expected)


def test_router_logits_are_refused(tiny_models):
    """Their balancing loss counts the rows of the whole prompt."""
    family = FAMILIES["qwen3_vl_moe"]
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    with torch.no_grad():
        dense = model(**inputs, output_router_logits=True).logits
        with prune(model, "fastv", keep=1.0):
            assert torch.equal(model(**inputs, output_router_logits=True).logits, dense)
        with prune(model, "fastv", keep=0.5):
            with pytest.raises(Unsupported, match="Pass output_router_logits=False"):
                model(**inputs, output_router_logits=True)
            model(**inputs)


# 12, 13: caches and configs.


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl", "qwen3_vl"])
def test_a_static_cache_behind_padding_on_the_right(name, tiny_models):
    family = FAMILIES[name]
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5], [3, Picture(4, 6), 7]])
    for key in ("input_ids", "attention_mask"):
        inputs[key] = torch.nn.functional.pad(inputs[key], (0, 2))
    inputs |= family.extra(inputs)
    static = GREEDY | {"cache_implementation": "static"}
    with torch.no_grad():
        dense = model.generate(**inputs, **static)
        with prune(model, "uniform", keep=1.0):
            assert torch.equal(model.generate(**inputs, **static), dense)
        with prune(model, "uniform", keep=0.5), pytest.raises(Unsupported, match="Pad on the left"):
            model.generate(**inputs, **static)


@pytest.mark.parametrize("at", [0, 2])
def test_a_window_in_the_config_that_attention_ignores(at):
    family = FAMILIES["smolvlm"]
    inputs = family.inputs([[3, Picture(4, 6), 5], [2, Picture(4, 6), 8]])
    for window, fits in ((4096, True), (20, False)):
        config = family.config()
        config.text_config.sliding_window = window
        torch.manual_seed(0)
        model = family.model_class._from_config(config, attn_implementation="sdpa").eval()
        with torch.no_grad(), prune(model, [Stage(at, Random(keep=0.5))]) as run:
            if not fits:
                with pytest.raises(Unsupported, match=r"sliding_window=20, which its attention ignores"):
                    model.generate(**inputs, **GREEDY)
                continue
            out = model.generate(**inputs, **GREEDY, **LOGITS)
            found = done(run)
        expected = oracle_logits(family, model, family.grown(inputs, out.sequences), **found)
        for step, scores in enumerate(out.logits):
            place = inputs["input_ids"].shape[1] - 1 + step
            torch.testing.assert_close(scores, expected[:, place], atol=1e-4, rtol=0)


# 10: thin pictures.


@cases(
    "name, size",
    list(
        product(
            ["llava_next", "llava_next_video", "llava_onevision"],
            [(10, 800), (800, 10), (1, 2000), (2000, 1), (37, 500)],
        )
    ),
    lambda name, size: (name, size[0] > size[1]),
)
def test_thin_pictures(name, size, tiny_models):
    """Their tiles have no token: only newlines, or nothing at all."""
    family = FAMILIES[name]
    model, made = tiny_models(family), torch.Generator().manual_seed(0)
    pixels = {"pixel_values": torch.randn(1, 3, 3, 24, 24, generator=made), "image_sizes": torch.tensor([size])}
    with torch.no_grad():
        features = model.model.get_image_features(**pixels).pooler_output
    count = sum(len(one) for one in features)
    ids = torch.tensor([[1, 5, 6, *[IMAGE] * count, 7, 8, 9]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    for plan in ("divprune", "fastv", "fopru", STAGED):
        with torch.no_grad(), attach(model, plan) as run:
            logits = model(**inputs).logits
            right(family, model, inputs, logits, run)
    with torch.no_grad(), prune(model, "uniform", keep=0) as run:
        right(family, model, inputs, model(**inputs).logits, run)


# 14, 15, 16, 17: training, compiling, memory, copies, half an attachment.


@pytest.mark.parametrize("plan", ["divprune", "fastv"])
def test_reentrant_checkpointing(plan):
    family = FAMILIES["llava"]
    inputs = family.inputs(BATCHES["one"])
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    gradients = []
    for reentrant in (None, True):
        model = family.build().train()
        if reentrant:
            model.gradient_checkpointing_enable({"use_reentrant": True})
            model.enable_input_require_grads()
        with prune(model, plan, keep=1.0 if reentrant and plan == "fastv" else 0.5):
            whole = model(**inputs, labels=inputs["input_ids"]).loss if reentrant and plan == "fastv" else None
        with prune(model, plan, keep=0.5):
            if whole is not None:
                assert whole.isfinite(), "nothing is chosen, so nothing is refused"
                with pytest.raises(Unsupported, match=r"'use_reentrant': False|needs a newer transformers"):
                    model(**inputs, labels=labels)
                return
            model(**inputs, labels=labels).loss.backward()
        gradients.append([p.grad.clone() for p in model.model.language_model.layers.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_another_model_may_be_compiled(attention, tiny_models):
    torch._dynamo.reset()
    other = LlamaForCausalLM(llama(attn_implementation=attention)).eval()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad(), prune(tiny_models(FAMILIES["llava"]), "fastv", keep=0.3):
        expected = other(ids, use_cache=False).logits
        compiled = torch.compile(other, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, expected)
    torch._dynamo.reset()


def test_a_model_that_is_dropped_is_freed():
    family = FAMILIES["llava"]
    before = taps._users
    model = family.build()
    gone = weakref.ref(model)
    prune(model, "fastv", keep=0.3)
    with torch.no_grad():
        model(**family.inputs(BATCHES["one"]))
    assert taps._users == before + 1
    del model
    gc.collect()
    assert gone() is None
    assert taps._users == before


def test_copies_are_refused(tiny_models, tmp_path):
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs(BATCHES["one"])
    for method in ("divprune", "fastv"):
        with prune(model, method, keep=0.5):
            for copying in (
                lambda: copy.deepcopy(model),
                lambda: copy.deepcopy(model.model),
                lambda: pickle.dumps(model),
                lambda: torch.save(model, tmp_path / "model.pt"),
            ):
                with pytest.raises(Unsupported, match=r"Call remove\(\) first"):
                    copying()
            torch.save(model.state_dict(), tmp_path / "weights.pt")
            model.save_pretrained(tmp_path / "saved")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(twin(**inputs).logits, model(**inputs).logits)


def test_attaching_is_all_or_nothing(monkeypatch):
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs(BATCHES["one"])
    with torch.no_grad():
        expected = model(**inputs).logits
    users, names = taps._users, {n: sorted(vars(m)) for n, m in model.named_modules()}
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    with monkeypatch.context() as broken:
        broken.setattr(EncoderReader, "attach", lambda self: self._getters.wrap("get_nothing", lambda getter: getter))
        with pytest.raises(Unsupported, match=r"has no get_nothing\(\)"):
            prune(model, "fastv", keep=0.5)
    assert {n: sorted(vars(m)) for n, m in model.named_modules()} == names
    assert hooks == [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    assert taps._users == users
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)
    prune(model, "fastv", keep=0.5).remove()


# 18, and refusals that name the mend.


def test_what_has_no_media_runs_as_it_is(tiny_models):
    """Text-only turns by embeddings (prompt tuning), and masks that were prepared."""
    family = FAMILIES["llava"]
    model = tiny_models(family)
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    embeds = model.get_input_embeddings()(ids)
    mask = torch.ones(1, 1, 5, 5).tril().bool()
    with torch.no_grad():
        expected = [model(inputs_embeds=embeds).logits, model(input_ids=ids, attention_mask=mask).logits]
        said = model.generate(inputs_embeds=embeds, **GREEDY)
        for plan in ("divprune", "fastv"):
            with prune(model, plan, keep=0.3):
                found = [model(inputs_embeds=embeds).logits, model(input_ids=ids, attention_mask=mask).logits]
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
                assert torch.equal(model.generate(inputs_embeds=embeds, **GREEDY), said)
        with prune(model, "fastv", keep=0.3):  # a turn by embeddings after a turn with a picture
            cache = DynamicCache(config=model.config)
            inputs = family.inputs(BATCHES["one"])
            model(**inputs, **{CACHE: cache})
            model(inputs_embeds=embeds[:, :1], **{CACHE: cache})


class Pipeline:
    """Stands for transformers' pipelines."""

    def __init__(self, model):
        self.model = model


def test_what_is_no_model_or_no_method(tiny_models):
    model = tiny_models(FAMILIES["llava"])
    for wrong, says in (
        ("llava-hf/llava-1.5-7b-hf", r"is a name, not a model\. Load it first: AutoModelForImageTextToText"),
        (torch.nn.DataParallel(model), r"Prune the model inside it: model\.module"),
        (Pipeline(model), r"holds one\. Prune that: its \.model"),
        (Chat.load("scenes").processor, r"is a processor\. Pass the model"),
    ):
        with pytest.raises(Unsupported, match=says):
            prune(wrong, "divprune", keep=0.1)
    with pytest.raises(BadInput, match=r"DivPrune is a class\. Write DivPrune\(keep=0\.1\), or its name: 'divprune'"):
        prune(model, DivPrune)
    with pytest.raises(BadInput, match="None is no method"):
        prune(model, None)
    vlm = {"model_type": "paligemma", **FAMILIES["paligemma"].config().to_dict()}
    retriever = ColPaliForRetrieval(ColPaliConfig(vlm_config=vlm, embedding_dim=8))
    with pytest.raises(Unsupported, match=r"Merge those: tokenprune\.merge_pages\(embeddings"):
        prune(retriever, "divprune", keep=0.1)
