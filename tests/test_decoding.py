"""Stages at every decoding step: what a step looks at, and that nothing is lost; the oracle: `test_versions.py`."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from tests.decoding import GREEDY, LOGITS, PADDED, PLANS
from tests.tiny import FAMILIES, Picture
from tests.vectors import load
from tokenprune import BadInput, DivPrune, DyCokeKV, FastOCR, Stage, Unsupported, prune
from tokenprune.engine.decode_cache import SPARE, Buffer, RetainedLayer
from tokenprune.methods.base import View
from tokenprune.recipes import load_recipe


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
                assert (i < 3) or layer.shown.buffer.length == length - 36 + 3 + step + 1
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
            places.append([(layer.keys.data_ptr(), layer.shown.buffer.keys.data_ptr()) for layer in cache.layers[3:]])
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


def test_dycoke_kv_chooses_as_published():
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
