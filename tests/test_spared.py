"""Blocks of a vision encoder behind the one that the features come from do not run in a pruned model."""

from __future__ import annotations

import pytest
import torch

from tests.encoder_oracle import towers_of
from tests.signals import Hear
from tests.tiny import FAMILIES, Picture
from tokenprune import prune
from tokenprune.signals.need import Need

BEHIND = {"llava": 1, "llava_next": 1, "video_llava": 1, "llava_next_video": 1}


def ran(model, inputs):
    """Logits, and for each block of each encoder how often its attention was called."""
    counts, handles = [], []
    for blocks in towers_of(model):
        counts.append([0] * len(blocks))
        for i, block in enumerate(blocks):

            def note(*_, own=counts[-1], i=i):
                own[i] += 1

            handles.append(block.self_attn.register_forward_pre_hook(note))
    with torch.no_grad():
        logits = model(**inputs).logits
    for handle in handles:
        handle.remove()
    return logits, counts


@pytest.mark.parametrize("name", BEHIND)
def test_the_features_are_the_same_to_the_bit(name):
    family, model = FAMILIES[name], FAMILIES[name].build()
    inputs = family.inputs([[1, Picture(4, 4), 2]])
    expected, whole = ran(model, inputs)
    assert any(all(one) for one in whole)
    attributes = [sorted(vars(block)) for blocks in towers_of(model) for block in blocks]
    with prune(model, "uniform", keep=1.0) as run:
        found, counts = ran(model, inputs)
        assert torch.equal(found, expected)
        assert counts == [[*one[: -BEHIND[name]], *[0] * BEHIND[name]] for one in whole]
        assert run.report().spared_blocks[0] >= BEHIND[name]
        assert "encoder blocks that run" in str(run.report())
        with run.lift():
            assert ran(model, inputs)[1] == whole
    assert attributes == [sorted(vars(block)) for blocks in towers_of(model) for block in blocks]
    assert ran(model, inputs)[1] == whole


def test_what_is_not_made_is_not_there():
    family, model = FAMILIES["llava"], FAMILIES["llava"].build()
    pixels = family.inputs([[1, Picture(4, 4), 2]])["pixel_values"]
    whole = model.get_image_features(pixel_values=pixels)
    assert whole.last_hidden_state is not None
    with prune(model, "uniform", keep=0.5):
        seen = model.get_image_features(pixel_values=pixels)
    assert seen.last_hidden_state is None
    for one, other in zip(seen.pooler_output, whole.pooler_output, strict=True):
        assert torch.equal(one, other)
    if whole.hidden_states is not None:
        assert seen.hidden_states[-1] is None
        assert torch.equal(seen.hidden_states[-2], whole.hidden_states[-2])


def test_two_towers_each_lose_what_they_spared():
    family, model = FAMILIES["video_llava"], FAMILIES["video_llava"].build()
    inputs = family.inputs([[1, Picture(4, 4), 2]])
    pixels = next(value for name, value in inputs.items() if name.startswith("pixel_values"))  # named anew in 5.23
    whole = model.get_image_features(pixels)
    with prune(model, "uniform", keep=0.5):
        seen = model.get_image_features(pixels)
    there = [state is not None for state in whole.hidden_states]  # a library may hand out only what it needs itself
    assert any(there[:-1])
    assert [state is not None for state in seen.hidden_states] == [*there[:-1], False]


def test_a_block_that_a_signal_is_read_in_runs():
    family, model = FAMILIES["llava"], FAMILIES["llava"].build()
    inputs = family.inputs([[1, Picture(4, 4), 2]])
    with prune(model, Hear(keep=1.0, reads=(Need("vision_keys"),))):
        assert not all(ran(model, inputs)[1][0])
    with prune(model, Hear(keep=1.0, reads=(Need("vision_keys", "last"),))):
        assert all(ran(model, inputs)[1][0])


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "internvl", "gemma3"])
def test_encoders_that_use_every_block_run_them(name):
    family, model = FAMILIES[name], FAMILIES[name].build()
    with torch.no_grad(), prune(model, "uniform", keep=0.5) as run:
        model(**family.inputs([[1, Picture(4, 4), 2]]))
        assert run.report().spared_blocks[0] == 0
