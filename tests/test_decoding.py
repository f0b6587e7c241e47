"""Stages at every decoding step: what a step looks at, and that nothing is lost."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from tests.test_golden import load
from tests.test_laws import kept_by_layer
from tests.tiny import BREAK, FAMILIES, IMAGE, VIDEO, Picture, Video
from tokenprune import BadInput, DivPrune, DyCokeKV, FastOCR, FastV, Stage, Unsupported, prune
from tokenprune.attach.retention import SPARE, Buffer, RetainedLayer
from tokenprune.methods.base import View
from tokenprune.recipes import load_recipe

GREEDY = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO, BREAK]}
LOGITS = GREEDY | {"output_logits": True, "return_dict_in_generate": True}
PADDED = [[3, Picture(4, 6), 5], [2, Picture(3, 4), 4, Picture(4, 3), 6], [9]]
CLIPS = [[3, Video(2, 3, 2), 5], [2, Video(2, 3, 4), 4, Video(2, 2, 3), 6]]
PLANS = {
    "dycoke_kv": lambda: [Stage("decode", DyCokeKV(keep=0.3, alike=2.0), start=2)],
    "previous": lambda: [Stage("decode", DyCokeKV(keep=0.3, alike=0.99), start=3)],
    "full": lambda: [Stage("decode", DyCokeKV(keep=4, alike=0.99, otherwise="full"), start=1)],
    "fastocr": lambda: [Stage("decode", FastOCR(keep=0.2), start=2), Stage("decode", FastOCR(keep=0.2), start=4)],
    "after pruning": lambda: [
        Stage(0, DivPrune(keep=0.6)),
        Stage(3, FastV(keep=0.5)),
        Stage("decode", DyCokeKV(keep=0.4, alike=2.0), start=4),
    ],
}


def looked_at(run, stages):
    """For each decoding step, for each layer, for each row: visual columns seen; None: all of them."""
    layers = len(run.text_model.layers)
    reuses = stages[-1].method.reuses
    steps, before = [], None
    for report in run.steps:
        shown = []
        for i in range(layers):
            passed = [n for n, s in enumerate(stages) if s.start <= i]
            focal = any(s.start - 1 == i for s in stages)
            if focal:
                shown.append(None)
            elif passed:
                shown.append(report.columns[passed[-1]])
            else:
                shown.append(before if reuses else None)
        before = report.columns[-1]
        steps.append(shown)
    return steps


def oracle(family, model, inputs, run, length):
    """Logits of the whole sequence: the unpatched model, in which each step's row hides what it did not look at."""
    decoding = sorted((s for s in run.decoder.stages), key=lambda s: s.start)
    steps = looked_at(run, decoding)
    kept = kept_by_layer(run)
    placeholders = torch.isin(inputs["input_ids"], torch.tensor(family.placeholder))
    visual = torch.zeros_like(placeholders)
    for span in run.spans:
        visual[span.row, list(span.columns)] = True
    valid = inputs["attention_mask"].bool()
    handles = []

    def hide(i):
        def hook(module, args, kwargs):
            total = visual.shape[1]
            alive = valid.clone()
            for at in [at for at in kept if at <= i]:
                for row, columns in enumerate(kept[at]):
                    alive[row] &= ~placeholders[row]
                    alive[row, columns] = True
            allowed = torch.ones(total, total).tril().bool() & alive[:, None]
            for step, shown in enumerate(steps):
                if shown[i] is not None:
                    for row, columns in enumerate(shown[i]):
                        allowed[row, length + step] &= ~visual[row]
                        allowed[row, length + step, columns] = alive[row, columns]
            allowed = (allowed | torch.eye(total).bool())[:, None]
            mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
            return args, kwargs | {"attention_mask": mask}

        return hook

    for i, layer in enumerate(family.text_model(model).layers):
        handles.append(layer.register_forward_pre_hook(hide(i), with_kwargs=True))
    try:
        with torch.no_grad():
            return model(**inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.laws
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl"])
def test_every_step_equals_the_oracle(name, plan, tiny_models):
    """Law 3, on a padded batch of images, or of videos where there are."""
    family = FAMILIES[name]
    model = tiny_models(family)
    inputs = family.inputs(CLIPS if family.has_video and plan != "fastocr" else PADDED)
    length = inputs["input_ids"].shape[1]
    with prune(model, PLANS[plan]()) as run:
        out = model.generate(**inputs, **LOGITS)
    assert len(run.steps) == 4
    expected = oracle(family, model, family.grown(inputs, out.sequences), run, length)
    for step, logits in enumerate(out.logits):
        torch.testing.assert_close(logits, expected[:, length - 1 + step], atol=1e-4, rtol=0)


def test_looking_at_everything_changes_nothing(tiny_models):
    family = FAMILIES["llava"]
    model = tiny_models(family)
    inputs = family.inputs(PADDED)
    dense = model.generate(**inputs, **LOGITS)
    for method in ("dycoke_kv", "fastocr"):
        with prune(model, method, keep=1.0) as run:
            found = model.generate(**inputs, **LOGITS)
        for a, b in zip(dense.logits, found.logits, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        assert run.report().decoding.held_bytes == run.report().decoding.read_bytes


def test_the_prompt_is_untouched_and_the_cache_whole(tiny_models):
    family = FAMILIES["llava"]
    model = tiny_models(family)
    inputs = family.inputs([[3, Picture(4, 6), 5]])
    dense = model(**inputs)
    cache = DynamicCache(config=model.config)
    with prune(model, "dycoke_kv", keep=3) as run:
        pruned = model(**inputs, past_key_values=cache)
        torch.testing.assert_close(pruned.logits, dense.logits, atol=1e-5, rtol=0)
        length = inputs["input_ids"].shape[1]
        for step in range(3):
            mask = torch.ones(1, length + step + 1, dtype=torch.long)
            model(input_ids=torch.tensor([[7]]), attention_mask=mask, past_key_values=cache)
            for i, layer in enumerate(cache.layers):
                assert layer.keys.shape[2] == layer.get_seq_length() == length + step + 1
                assert (i < 3) or layer.shown.length == length - 36 + 3 + step + 1
                if not step:
                    torch.testing.assert_close(layer.keys[:, :, :length], dense.past_key_values.layers[i].keys)
        report = run.report().decoding
        assert (report.steps, report.visual, report.looked_at) == (3, 36, 3)
        assert report.read_bytes < report.held_bytes
        assert "visual tokens a step looks at" in str(run.report())
        assert run.report().to_dict()["decoding"]["steps"] == 3


def test_a_step_that_chooses_nothing_new_copies_nothing(tiny_models):
    """The keys that attention reads stay where they are in memory, and new tokens are written behind them."""
    family = FAMILIES["llava"]
    model = tiny_models(family)
    inputs = family.inputs([[3, Picture(4, 6), 5]])
    cache = DynamicCache(config=model.config)
    with prune(model, "dycoke_kv", keep=3, alike=-1.0):
        model(**inputs, past_key_values=cache)
        places = []
        for step in range(4):
            mask = torch.ones(1, inputs["input_ids"].shape[1] + step + 1, dtype=torch.long)
            model(input_ids=torch.tensor([[7]]), attention_mask=mask, past_key_values=cache)
            places.append([(layer.keys.data_ptr(), layer.shown.keys.data_ptr()) for layer in cache.layers[3:]])
    assert places[1:] == places[:1] * 3


def test_room_grows():
    rows = Buffer.of(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
    for i in range(2 * SPARE):
        rows.append(torch.full((1, 2, 1, 4), float(i)), torch.full((1, 2, 1, 4), -float(i)))
    assert rows.keys[0, 0, 3:, 0].tolist() == list(range(2 * SPARE))
    assert rows.values[0, 1, 3:, 3].tolist() == [-i for i in range(2 * SPARE)]


@pytest.mark.parametrize("plan", ["dycoke_kv", "previous", "fastocr"])
def test_beams_and_batches(plan, tiny_models):
    """Law 4 and 7: a padded batch equals its rows alone; beams follow their hypotheses."""
    family = FAMILIES["llava"]
    model = tiny_models(family)
    rows = PADDED[:2]
    with prune(model, PLANS[plan]()):
        whole = model.generate(**family.inputs(rows), **GREEDY)
        for i, row in enumerate(rows):
            one = family.inputs([row], first=i)
            alone = model.generate(**one, **GREEDY)
            assert alone[0, one["input_ids"].shape[1] :].tolist() == whole[i, -5:].tolist()
        single = family.inputs(rows[:1])
        beams = model.generate(**single, **GREEDY, num_beams=3)
        best = model.generate(**single, **LOGITS)
        sampled = model.generate(**single, **GREEDY | {"do_sample": True, "num_return_sequences": 2})
    assert beams.shape == best.sequences.shape
    assert len(sampled) == 2


def test_a_second_question(tiny_models):
    """Several tokens at once see everything; the next single steps choose again."""
    family = FAMILIES["llava"]
    model = tiny_models(family)
    inputs = family.inputs([[3, Picture(4, 6), 5]])
    with prune(model, "dycoke_kv", keep=4) as run:
        cache = DynamicCache(config=model.config)
        first = model.generate(**inputs, **GREEDY, past_key_values=cache)
        longer = torch.cat([first, torch.tensor([[11, 12, 13]])], dim=1)
        mask = torch.ones_like(longer)
        again = model.generate(input_ids=longer, attention_mask=mask, past_key_values=cache, **GREEDY)
        assert again.shape[1] == longer.shape[1] + 5
        assert run.steps[-1].chosen == [4]
        cache.crop(-3)
        assert all(layer.get_seq_length() == again.shape[1] - 4 for layer in cache.layers)


def test_golden_dycoke():
    """The published code counts one visual token too few, and looks at everything where a step resembles the last."""
    data = load("dycoke_decode")
    start, n, p = int(data["image_start"]), int(data["image_len"]), round(float(data["p"]), 6)
    method = DyCokeKV(keep=round(1 - p, 6), otherwise="full")
    last = None
    for step, rows in enumerate(data["attn_last_row"]):
        row = rows[None, :, start : start + n]
        mean = row.mean(1)
        moves = bool(method.moves(mean, last)[0])
        assert moves != bool(data["used_full_cache"][step])
        if last is not None:
            torch.testing.assert_close(torch.cosine_similarity(mean, last), data["similarity"][step][None])
        last = mean
        if moves:
            index = method.select(View(n, 1, (), {"attention_row": row}, total=n)).index[0]
            kept = data["kept_sorted"][step]
            theirs = kept[(kept >= start) & (kept < start + n)] - start
            assert index.tolist() == theirs.tolist()


def test_what_does_not_work_is_refused(tiny_models):
    family = FAMILIES["llava"]
    model = tiny_models(family)
    with pytest.raises(BadInput, match="every decoding step"):
        prune(model, "dycoke_kv", at=3)
    with pytest.raises(BadInput, match="does not fit divprune"):
        prune(model, "divprune", at="decode")
    with pytest.raises(BadInput, match="one before it"):
        Stage("decode", DyCokeKV(), start=0)
    with pytest.raises(BadInput, match="goes with at='decode'"):
        Stage(2, DivPrune(), start=3)
    with pytest.raises(BadInput, match="past the last layer"):
        prune(model, [Stage("decode", DyCokeKV(), start=6)])
    with pytest.raises(BadInput, match="same start"):
        prune(model, [Stage("decode", DyCokeKV(), start=2), Stage("decode", FastOCR(), start=2)])
    inputs = family.inputs([[3, Picture(4, 6), 5]])
    with prune(model, "dycoke_kv"), pytest.raises(Unsupported, match="StaticLayer"):
        model.generate(**inputs, **GREEDY, cache_implementation="static")
    sliding = FAMILIES["gemma3"]
    with pytest.raises(Unsupported, match="sliding window"):
        prune(tiny_models(sliding), [Stage("decode", DyCokeKV(), start=1)])
    assert not any(isinstance(m, RetainedLayer) for m in model.modules())


def test_recipes_name_decoding_stages(tmp_path):
    path = tmp_path / "both.yaml"
    path.write_text("model: m\nstages:\n  - {at: 0, method: dycoke}\n  - {at: decode, from: 3, method: dycoke_kv}\n")
    stages = load_recipe(path).to_stages()
    assert [(s.at, s.start) for s in stages] == [(0, None), ("decode", 3)]
    path.write_text("model: m\nstages:\n  - {at: later, method: dycoke}\n")
    with pytest.raises(BadInput, match="stages"):
        load_recipe(path)
