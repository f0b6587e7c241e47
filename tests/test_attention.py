"""Signals and answers do not depend on the attention kernel: eager, SDPA, flex attention, FlashAttention's interface.

FlashAttention itself needs a GPU. Here its two functions are stood in for by plain PyTorch with the same arguments, so
that everything the library does around them (masks, unpadding, packed sequences found in position ids) is really run.
"""

from __future__ import annotations

import pytest
import torch
from transformers import modeling_flash_attention_utils as flash

from tests.draw import cases
from tests.laws import BATCHES, GREEDY, attach, by_anchor, cells, times
from tests.tiny import FAMILIES
from tokenprune import Unsupported, prune

pytestmark = pytest.mark.laws
PLANS = ["fopru", "divprune+fastv"]
# PaliGemma: flash itself leaves out its two-way prefix.
WINDOWED = ("gemma3", "paligemma", "paligemma2", "mistral3", "aya_vision", "cohere2_vision", "exaone4_5")


def attend(q, k, v, scale, causal):
    """[S, H, D] queries on [T, H', D] keys, the last query aligned with the last key."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("shd,thd->hst", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(k.shape[0] - q.shape[0])
        scores = scores.masked_fill(~seen, float("-inf"))
    return torch.einsum("hst,thd->shd", scores.softmax(-1), v)


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0):
    return torch.stack([attend(*one, softmax_scale, causal) for one in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
):
    queries, keys = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    parts = zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
    return torch.cat([attend(*part, softmax_scale, causal) for part in parts])


@pytest.fixture
def stand_in(monkeypatch):
    functions = flash_attn_func, flash_attn_varlen_func, None, flash._pad_input, flash._unpad_input
    monkeypatch.setattr(flash, "_lazy_imports", lambda *a, **k: functions)
    for name in ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn"):
        monkeypatch.setattr(flash, name, None, raising=False)


def flashy(family):
    model = family.build()
    model.config._attn_implementation = "flash_attention_2"
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "flash_attention_2"
    return model


def outcome(model, inputs, plan, positions="original"):
    with torch.no_grad(), attach(model, plan, positions) as run:
        out = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
        return [[row.tolist() for row in rows] for rows in run.kept], torch.stack(out.logits)


@cases("family, plan", [c for c in cells(PLANS) if c.values[0].name != "paligemma2"], by_anchor)
def test_eager(family, tiny_models, plan):
    inputs = family.inputs(BATCHES["padded"])
    kept, logits = outcome(tiny_models(family), inputs, plan)
    found, own = outcome(tiny_models(family, "eager"), inputs, plan)
    assert found == kept
    torch.testing.assert_close(own, logits, atol=1e-4, rtol=0)


@cases(
    "family, plan, run",
    times([c for c in cells(PLANS) if c.values[0].name not in WINDOWED], ["one", "padded", "one compact"]),
    by_anchor,
)
def test_flash(family, tiny_models, stand_in, plan, run):
    """One row without padding is where gapped position ids would pass for packed sequences."""
    batch, _, positions = run.partition(" ")
    inputs = family.inputs(BATCHES[batch])
    kept, logits = outcome(tiny_models(family), inputs, plan, positions or "original")
    model = flashy(family)
    found, own = outcome(model, inputs, plan, positions or "original")
    assert flash._flash_fn is flash_attn_func
    assert found == kept
    torch.testing.assert_close(own, logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["gemma3", "mistral3"])
def test_flash_windows_are_refused(name, stand_in):
    """The kernel counts its window in keys that are there."""
    family = FAMILIES[name]
    inputs = family.inputs(BATCHES["one"])
    with prune(flashy(family), "divprune", keep=0.3) as run, pytest.raises(Unsupported, match="sliding window of 1"):
        run.model.generate(**inputs, **GREEDY)


@cases(
    "name",
    ["llava", "llava_onevision", "internvl", "smolvlm", "gemma3", "mistral3"],
    lambda name: name in WINDOWED and name,  # whose masks differ
)
def test_flex(name, tiny_models, plain_flex):
    """The Qwen-VL line has no flex attention in transformers."""
    plan = "divprune+fastv"
    family = FAMILIES[name]
    inputs = family.inputs(BATCHES["padded"])
    kept, logits = outcome(tiny_models(family), inputs, plan)
    found, own = outcome(family.build("flex_attention"), inputs, plan)
    assert found == kept
    torch.testing.assert_close(own, logits, atol=1e-4, rtol=0)
