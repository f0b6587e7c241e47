"""The laws of the design, for every method of the registry on every family."""

from __future__ import annotations

import pytest
import torch

from tests.oracle import oracle_logits
from tests.tiny import FAMILIES, IMAGE, VIDEO, Picture, Video
from tokenprune import DivPrune, FastV, FoPru, Random, Stage, Uniform, prune
from tokenprune.methods.registry import all_methods

pytestmark = pytest.mark.laws

EXTRA = {"fopru-row": ("fopru", {"strategy": "row"})}
METHODS = {name: (name, {}) for name in all_methods()} | EXTRA
PLANS = {name: lambda keep, spec=spec: (spec[0], {"keep": keep, **spec[1]}) for name, spec in METHODS.items()}
STAGES = {
    "divprune+fastv": lambda: [Stage(0, DivPrune(keep=0.5)), Stage(3, FastV(keep=0.4))],
    "four stages": lambda: [
        Stage(0, FoPru(keep=0.8)),
        Stage(1, FastV(keep=0.7)),
        Stage(3, Random(keep=0.6)),
        Stage(5, Uniform(keep=1)),
    ],
    "late": lambda: [Stage(2, DivPrune(keep=0.3)), Stage(4, FastV(keep=2))],
}
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO]}
BATCHES = {
    "one": [[3, Picture(4, 6), 5]],
    "padded": [[3, Picture(4, 6), 5], [2, Picture(3, 4), 4, Picture(4, 3), 6]],
    "text-only row": [[7], [2, Picture(4, 4), 6], [1, Picture(5, 3), 2]],
}


def attach(model, plan, positions="original"):
    if plan in PLANS:
        name, options = PLANS[plan](0.3)
        return prune(model, name, positions=positions, **options)
    return prune(model, STAGES[plan](), positions=positions)


def kept_by_layer(run):
    return {stage.at: kept for stage, kept in zip(run.stages, run.kept, strict=True)}


def alive_rows(run, inputs, placeholders):
    """bool [B, L]: tokens that reach the last layer."""
    alive = inputs["attention_mask"].bool() & ~torch.isin(inputs["input_ids"], torch.tensor(placeholders))
    for row, kept in enumerate(run.kept[-1]):
        alive[row, kept] = True
    return alive


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("plan", [*PLANS, *STAGES])
def test_oracle_prefill_and_every_step(family, tiny_models, plan, batch, positions):
    """Law 3."""
    check_oracle(family, tiny_models(family), BATCHES[batch], plan, positions)


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("plan", [*PLANS, *STAGES])
def test_oracle_with_videos(tiny_models, plan, positions):
    """Law 3 for images and videos side by side, a video before an image of as many tokens included."""
    family = FAMILIES["qwen2_5_vl"]
    rows = [[3, Video(2, 3, 2), 2, Picture(3, 4), 5], [2, Picture(4, 3), 4, Video(3, 2, 4), 6], [9]]
    check_oracle(family, tiny_models(family), rows, plan, positions)


def check_oracle(family, model, rows, plan, positions):
    inputs = family.inputs(rows)
    with attach(model, plan, positions) as run:
        logits = model(**inputs).logits
        kept = kept_by_layer(run)
        out = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
        assert all(torch.equal(a, b) for at in kept for a, b in zip(kept_by_layer(run)[at], kept[at], strict=True))
        alive = alive_rows(run, inputs, family.placeholder)
    # Decoding lengthens the prompt by the tokens that were generated; all of them are text.
    grown = dict(inputs) | {"input_ids": out.sequences}
    for name in ("attention_mask", "mm_token_type_ids"):
        if name in grown:
            added = torch.full_like(out.sequences[:, inputs["input_ids"].shape[1] :], int(name == "attention_mask"))
            grown[name] = torch.cat([grown[name], added.to(grown[name].dtype)], dim=1)
    expected = oracle_logits(model, grown, kept, family.placeholder, positions == "compact")
    length = inputs["input_ids"].shape[1]
    if len(rows) == 1 or family.name != "llava":  # an unpadded forward without position_ids counts padding as tokens
        prefill = oracle_logits(model, inputs, kept, family.placeholder, positions == "compact")
        torch.testing.assert_close(logits[alive], prefill[alive], atol=1e-4, rtol=0)
    for step, scores in enumerate(out.logits):
        torch.testing.assert_close(scores, expected[:, length - 1 + step], atol=1e-4, rtol=0)
