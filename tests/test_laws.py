"""The laws of the design, for every method of the registry on every family."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from eval.matrix import condition, obstacle, variants
from tests.oracle import oracle_logits
from tests.tiny import BREAK, FAMILIES, IMAGE, VIDEO, Picture, Video
from tokenprune import DivPrune, FastV, MissingSignal, Random, Stage, Uniform, prune
from tokenprune.families.registry import family_of
from tokenprune.methods.base import options_of
from tokenprune.methods.signals import SIGNALS

pytestmark = pytest.mark.laws

METHODS = {name.replace(" ", "-").replace("source=", ""): method for name, method in variants()}
METHODS["todre-phase=migration"] = replace(METHODS["todre-phase=migration"], share=2.0)  # always low enough
PLANS = {
    name: lambda keep, method=method: (
        method.name,
        {f.name: getattr(method, f.name) for f in options_of(type(method))} | {"keep": keep},
    )
    for name, method in METHODS.items()
    if not (method.sets_aside or method.recalls)  # such phases only run together
    and not method.decodes  # `test_decoding`
    and not any(SIGNALS[need.signal].given for need in method.needs)
    and method.merges_in == "projected"  # else the oracle cannot mix rows; `test_merging_before_the_projector`
}
STAGES = {
    "divprune+fastv": lambda: [Stage(0, DivPrune(keep=0.5)), Stage(3, FastV(keep=0.4))],
    "four stages": lambda: [
        Stage(0, DivPrune(keep=0.8)),
        Stage(1, FastV(keep=0.7)),
        Stage(3, Random(keep=0.6)),
        Stage(5, Uniform(keep=1)),
    ],
    "drop all": lambda: [Stage(2, DivPrune(keep=0.3)), Stage(4, Uniform(keep=0))],
}
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO, BREAK]}
BATCHES = {
    "one": [[3, Picture(4, 6), 5]],
    "padded": [[3, Picture(4, 6), 5], [2, Picture(3, 4), 4, Picture(4, 3), 6]],
    "text-only row": [[7], [2, Picture(4, 4), 6], [1, Picture(5, 3), 2]],
}
CLIPS = [[3, Video(2, 3, 2), 5], [2, Video(2, 3, 4), 4, Video(2, 2, 3), 6], [9]]


def works(family, plan):
    """Whether a family gives the signals of a plan; `test_missing_signals_are_refused` holds it to that."""
    if plan in STAGES:
        return True
    needs = METHODS[plan].needs
    if any(SIGNALS[n.signal].vision for n in needs) and family.name in NO_ENCODER:
        return False
    lacking = {"rope_weight": family.name in ROTATES_BY_THREE}
    lacking["saliency_first"] = family.name == "qwen2_5_vl"  # its first layers work in windows
    return not any(lacking.get(n.signal) or (n.variant in ("cls", "joint") and not family.cls) for n in needs)


NO_ENCODER = ("fast_vlm", "perception_lm")
ROTATES_BY_THREE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "glm46v", "glm4v_moe")
ANCHORS = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3")  # one for each way in which families differ


VIDEO_ANCHORS = ("llava", "qwen2_5_vl", "qwen3_vl")  # the same for methods of frames, to which an image is one


def fits(name, plan, everywhere):
    """Whether a family runs a plan in a test that has `everywhere` on all of them, others on the anchors alone."""
    method = METHODS.get(plan)
    if method is not None and "video" in method.kind:
        if everywhere is None:
            return plan == method.name or name in VIDEO_ANCHORS
        return name in (VIDEO_ANCHORS if plan == method.name else VIDEO_ANCHORS[1:2])
    return everywhere is None or plan in everywhere or name in ANCHORS


def cells(plans, everywhere=None, video=False):
    """Families x plans that work. With `everywhere`, other plans run on the anchors alone."""
    return [
        pytest.param(family, plan, id=f"{name}-{plan}")
        for name, family in FAMILIES.items()
        for plan in plans
        if works(family, plan)
        and (family.has_video or not video)
        and (fits(name, plan, everywhere) or (video and plan in everywhere))
    ]


def policies(found, both=()):
    """Each cell with one position policy, by turns; plans or families in `both` with each of the two."""
    params = []
    for number, cell in enumerate(found):
        family, plan = cell.values
        turns = ("original", "compact")
        if plan not in both and family.name not in both:
            turns = turns[number % 2 :][:1]
        params += [pytest.param(family, plan, policy, id=f"{cell.id}-{policy}") for policy in turns]
    return pytest.mark.parametrize(("family", "plan", "positions"), params)


def attach(model, plan, positions="original", **more):
    if plan in PLANS:
        name, options = PLANS[plan](0.3)
        return prune(model, name, positions=positions, **options, **more)
    return prune(model, STAGES[plan](), positions=positions, **more)


def kept_by_layer(run):
    """For each stage's layer, for each row: the columns of visual tokens still there, and of the separators that still
    close one of them."""
    kept = {}
    for stage, rows in zip(run.stages, run.kept, strict=True):
        alive = [set(row.tolist()) for row in rows]
        for span in run.spans:
            for column, first, last in span.separators:
                if alive[span.row] & set(span.columns[first:last]):
                    alive[span.row].add(column)
        kept[stage.at] = [torch.tensor(sorted(row), dtype=torch.long) for row in alive]
    return kept


def merges_by_layer(run):
    return {stage.at: merges for stage, merges in zip(run.stages, run.merges, strict=True)}


def done(run, every=1):
    """What the oracle has to repeat; `every`: of a batch expanded by that much, the first copy of each row."""
    waits = [stage.at for stage in run.stages if stage.method.sets_aside or stage.method.recalls]
    merges = {
        at: [(row // every, *rest) for row, *rest in merged if row % every == 0]
        for at, merged in merges_by_layer(run).items()
    }
    kept = {at: rows[::every] for at, rows in kept_by_layer(run).items()}
    return {"stages": kept, "merges": merges, "bypass": tuple(waits) or None}


def alive_rows(run, inputs, placeholders):
    """bool [B, L]: tokens that reach the last layer."""
    alive = inputs["attention_mask"].bool() & ~torch.isin(inputs["input_ids"], torch.tensor(placeholders))
    for row, kept in enumerate(kept_by_layer(run)[run.stages[-1].at]):
        alive[row, kept] = True
    return alive


@policies(cells([*PLANS, *STAGES]), both=[*ANCHORS, *STAGES])
def test_oracle_prefill_and_every_step(family, tiny_models, plan, positions):
    """Law 3: every method on every family, on a padded batch of several images."""
    check_oracle(family, tiny_models(family), BATCHES["padded"], plan, positions)


@pytest.mark.parametrize("batch", ["one", "text-only row"])
@policies(cells([*PLANS, *STAGES], everywhere=["four stages"]), both=STAGES)
def test_oracle_on_other_batches(family, tiny_models, plan, batch, positions):
    """Law 3."""
    check_oracle(family, tiny_models(family), BATCHES[batch], plan, positions)


OF_FRAMES = [plan for plan in PLANS if METHODS[plan].kind.startswith("video") and plan == METHODS[plan].name]


@policies(cells([*PLANS, *STAGES], everywhere=["fopru", "downsample", *OF_FRAMES, *STAGES], video=True), both=STAGES)
def test_oracle_with_videos(family, tiny_models, plan, positions):
    """Law 3 for videos."""
    check_oracle(family, tiny_models(family), CLIPS, plan, positions)


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize(("family", "plan"), cells(["fopru", *STAGES], video=True))
def test_oracle_with_images_beside_videos(family, tiny_models, plan, positions):
    """Law 3 for both in one prompt, a video before an image of as many tokens included."""
    if family.name.startswith("glm4"):
        pytest.skip("its own model cannot tell images from videos in one prompt")
    rows = [[3, Video(2, 3, 2), 2, Picture(3, 4), 5], [2, Picture(4, 3), 4, Video(2, 2, 4), 6], [9]]
    check_oracle(family, tiny_models(family), rows, plan, positions)


def test_missing_signals_are_refused(family, tiny_models):
    """A family without a signal says so when pruned, not later and not by another signal."""
    for plan in PLANS:
        if not works(family, plan):
            with pytest.raises(MissingSignal, match=r"has no|no CLS|does not project"):
                attach(tiny_models(family), plan)
        else:
            attach(tiny_models(family), plan).remove()


def test_the_matrix_says_what_the_laws_hold(family, tiny_models):
    """The table of the README, cell by cell: every yes is run by the tests above (options of video methods on
    three families), every other cell is refused."""
    served = family_of(tiny_models(family))
    for name, method in variants():
        plan = name.replace(" ", "-").replace("source=", "")
        partly = condition(served, method) is not None
        if plan in PLANS:
            assert partly or (obstacle(served, method) is None) == works(family, plan), f"{name} on {family.name}"


def check_oracle(family, model, rows, plan, positions):
    inputs = family.inputs(rows)
    compact = positions == "compact"
    with attach(model, plan, positions) as run:
        logits = model(**inputs).logits
        first, alive = done(run), alive_rows(run, inputs, family.placeholder)
        out = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
        then = done(run)
    same_positions = len(rows) == 1 or not family.counts_padding
    if same_positions or plan != "dart":  # it reads rotated keys
        pairs = [pair for at in first["stages"] for pair in zip(then["stages"][at], first["stages"][at], strict=True)]
        assert all(torch.equal(a, b) for a, b in pairs)
    # Decoding lengthens the prompt by the tokens that were generated; all of them are text.
    grown = family.grown(inputs, out.sequences)
    expected = oracle_logits(family, model, grown, compact=compact, **then)
    length = inputs["input_ids"].shape[1]
    if same_positions:
        prefill = oracle_logits(family, model, inputs, compact=compact, **first)
        torch.testing.assert_close(logits[alive], prefill[alive], atol=1e-4, rtol=0)
    for step, scores in enumerate(out.logits):
        torch.testing.assert_close(scores, expected[:, length - 1 + step], atol=1e-4, rtol=0)
