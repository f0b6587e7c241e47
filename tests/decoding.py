"""Stages at every decoding step: plans, and what each step must equal."""

from __future__ import annotations

import torch

from tests.laws import close, kept_by_layer
from tests.oracle import oracle_logits
from tests.tiny import BREAK, IMAGE, VIDEO, Picture, Video
from tokenprune import DivPrune, DyCokeKV, FastOCR, FastV, Stage, prune

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
    """Logits of the whole sequence, in which each step hides what it did not look at, but for separators."""
    separators = torch.isin(inputs["input_ids"], torch.tensor(family.placeholder))
    for span in run.spans:
        separators[span.row, list(span.columns)] = False
    beside = [row.nonzero().flatten() for row in separators]

    def seen(shown):
        return shown and [torch.cat(pair) for pair in zip(shown, beside, strict=True)]

    decoding = sorted((s for s in run.decoding_stages), key=lambda s: s.start)
    steps = {length + i: [seen(shown) for shown in step] for i, step in enumerate(looked_at(run, decoding))}
    return oracle_logits(family, model, inputs, kept_by_layer(run), steps=steps)


def check_steps(family, model, plan):
    """Law 3, on a padded batch of images, or of videos where there are."""
    inputs = family.inputs(CLIPS if family.has_video and plan != "fastocr" else PADDED)
    length = inputs["input_ids"].shape[1]
    with prune(model, PLANS[plan]()) as run:
        out = model.generate(**inputs, **LOGITS)
    assert len(run.steps) == 4
    expected = oracle(family, model, family.grown(inputs, out.sequences), run, length)
    for step, logits in enumerate(out.logits):
        close(logits, expected[:, length - 1 + step], f"law 3, step {step}")
