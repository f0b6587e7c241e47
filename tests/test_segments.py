"""Sequences of one call attended to at once: what one call after the other gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import eager_attention_forward

from tests.tiny import FAMILIES, Picture, Video
from tokenprune import Stage, prune
from tokenprune.engine.segments import Segments
from tokenprune.methods.place import Pixels
from tokenprune.methods.random import Random
from tokenprune.signals import taps

LENGTHS = {"even": [6, 6, 6], "uneven": [4, 1, 7, 3, 7], "two": [2, 3]}


def plain(module):
    module.num_key_value_groups, module.training = 1, False
    return module


@pytest.mark.parametrize("kernel", [sdpa_attention_forward, eager_attention_forward])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_at_once_is_one_after_the_other(lengths, kernel):
    made, total, module = torch.Generator().manual_seed(0), sum(lengths), plain(nn.Module())
    parts = [torch.randn(1, 2, total, 8, generator=made) for _ in range(3)]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    segments = Segments.of(lengths, bounds)
    assert segments.whole.tolist() == [0, total]
    assert segments.whole.dtype == bounds.dtype
    found, _ = segments.attend(kernel, module, *parts, scaling=0.3, dropout=0.0, is_causal=False)
    options = dict(attention_mask=None, scaling=0.3, dropout=0.0, is_causal=False)
    expected = torch.cat([kernel(module, *own, **options)[0] for own in segments.split(*parts)], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_where_padding_would_be_most_of_the_work_it_stays_as_it_is():
    bounds = torch.tensor([0, 1])
    assert Segments.of([9], bounds) is None
    assert Segments.of([1000, *[2] * 40], bounds) is None
    assert Segments.of([1000, 900], bounds) is not None
    assert Segments.of([100, *[2] * 40], bounds) is not None


@pytest.mark.parametrize("media", [Picture(8, 8), Video(4, 4, 4)], ids=["windows", "frames"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_vl", "glm4v", "exaone4_5"])
def test_a_block_calls_its_kernel_once(name, media, monkeypatch):
    model, inputs = FAMILIES[name].build(), FAMILIES[name].inputs([[1, media, 5]])
    calls, attend = [], taps._attention

    def count(original, module, *args, **kwargs):
        if original is not None and "ision" in type(module).__name__:
            calls.append(module)
        return attend(original, module, *args, **kwargs)

    monkeypatch.setattr(taps, "_attention", count)
    with torch.no_grad(), prune(model, [Stage(Pixels(), Random(keep=0.5))]):
        model(**inputs)
    assert len(calls) == len(set(calls)) == 3
