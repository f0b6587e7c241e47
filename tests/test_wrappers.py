"""Law 7 for what people put around a model: PEFT, accelerate, quantized layers, pipelines."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.ao.quantization import quantize_dynamic
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from tests.draw import cases
from tests.laws import BATCHES, FAMILY, GREEDY, attach, by_anchor, few_families, kept_by_layer, state_of, times
from tests.oracle import oracle_logits
from tests.tiny import FAMILIES
from tokenprune import prune, scenes

pytestmark = pytest.mark.laws
PLAN = "divprune+fastv"


@few_families
def test_peft(family, tiny_models):
    """A LoRA adapter that changes the answers; the wrapper is what is pruned, run and given back."""
    model = family.build()
    targets = r".*(language_model|text_model)\.layers.*\.(q_proj|v_proj)"
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).eval()
    inputs = family.inputs(BATCHES["padded"])
    length = inputs["input_ids"].shape[1]
    wrapped.generate(**inputs, **GREEDY)  # which leaves attributes of its own
    before = state_of(model)
    with attach(wrapped, PLAN) as run:
        out = wrapped.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
        kept = kept_by_layer(run)
        flops = run.report().dense_flops
    assert state_of(model) == before
    with torch.no_grad(), attach(tiny_models(family), PLAN) as run:
        tiny_models(family)(**inputs)
        assert 1 < flops / run.report().dense_flops < 1.2, "the adapter alone is counted on top"
    expected = oracle_logits(family, model, family.grown(inputs, out.sequences), kept)
    for step, scores in enumerate(out.logits):
        torch.testing.assert_close(scores, expected[:, length - 1 + step], atol=1e-4, rtol=0)
    with wrapped.disable_adapter(), torch.no_grad(), attach(wrapped, PLAN):
        plain = model(**inputs).logits[:, -1]
    assert not torch.allclose(plain, out.logits[0], atol=1e-2)


@cases("family, place", times(FAMILY, ["cpu", "disk"]), by_anchor)
def test_accelerate_hooks(family, tiny_models, tmp_path, place):
    """As device_map does it: weights come in for a decoder layer's forward and go again, inputs follow the weights."""
    check_offloaded(family, tiny_models, tmp_path, place, PLAN)


@pytest.mark.parametrize("plan", ["pyramiddrop", "feather", "dart", "sparsevlm", "lvlm_csp"])
def test_accelerate_hooks_where_a_layer_is_asked_before_it_runs(tiny_models, tmp_path, plan):
    check_offloaded(FAMILIES["llava"], tiny_models, tmp_path, "cpu", plan)


def check_offloaded(family, tiny_models, tmp_path, place, plan):
    inputs = family.inputs(BATCHES["padded"])
    with torch.no_grad(), attach(tiny_models(family), plan) as run:
        expected, kept = tiny_models(family).generate(**inputs, **GREEDY), run.kept
    model, here = family.build(), torch.device("cpu")
    add_hook_to_module(model, AlignDevicesHook(execution_device=here, io_same_device=True))
    for i, layer in enumerate(family.text_model(model).layers):
        if place == "cpu":
            cpu_offload(layer, execution_device=here)
        else:
            disk_offload(layer, tmp_path / str(i), execution_device=here)
    with torch.no_grad(), attach(model, plan) as run:
        assert torch.equal(model.generate(**inputs, **GREEDY), expected)
        assert [[r.tolist() for r in rows] for rows in run.kept] == [[r.tolist() for r in rows] for rows in kept]


@few_families
def test_quantized_linear_layers(family):
    """Packed half-precision weights, in layers whose `weight` is no tensor: equal to the oracle with the same layers,
    and FLOPs counted by their real sizes. (8-bit activations would depend on which other rows are there.)"""
    model, inputs = family.build(), family.inputs(BATCHES["one"])
    with torch.no_grad(), attach(model, PLAN) as run:
        plain = model(**inputs).logits[:, -1]
        flops = run.report().flops
        for layer in family.text_model(model).layers:
            quantize_dynamic(layer, {torch.nn.Linear}, dtype=torch.float16, inplace=True)
        logits = model(**inputs).logits[:, -1]
        kept = kept_by_layer(run)
        assert run.report().flops == flops
    assert not torch.equal(plain, logits)
    expected = oracle_logits(family, model, inputs, kept)[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_pipeline():
    """transformers' own pipeline on the bundled model: the pruned answer of model.generate()."""
    model = AutoModelForImageTextToText.from_pretrained(scenes.MODEL, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(scenes.MODEL)
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    picture = Image.open(scenes.IMAGE)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": scenes.QUESTION}]
    turn = [{"role": "user", "content": content}]
    with prune(model, "divprune", keep=0.25) as run:
        answer = ask(text=turn, max_new_tokens=5, return_full_text=False)[0]["generated_text"]
        assert run.report().final_tokens == 36
        text = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        inputs = processor(images=picture, text=text, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert answer.strip()
    assert answer.split() == processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).split()


def test_half_of_a_model_in_half_precision():
    """model.half() after prune() is the same as before it."""
    family = FAMILIES["llava"]
    inputs = family.inputs(BATCHES["one"])
    inputs["pixel_values"] = inputs["pixel_values"].half()
    first, second = family.build().half(), family.build()
    with torch.no_grad(), attach(first, PLAN), attach(second, PLAN):
        second.half()
        assert torch.equal(first(**inputs).logits, second(**inputs).logits)
