"""What the tests of the laws share: plans, batches, cells of families x plans, and all that one run must fulfil."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace

import pytest
import torch
from transformers import LlavaForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.draw import cases, drawn, everything, values_of
from tests.oracle import oracle_logits
from tests.signals import signals
from tests.tiny import BREAK, FAMILIES, IMAGE, VIDEO, Picture, Video
from tokenprune import DivPrune, FastV, Random, Stage, Uniform, prune, select
from tokenprune.catalogue.reach import variants
from tokenprune.core.budget import n_keep
from tokenprune.methods.base import options_of
from tokenprune.methods.place import Layer, in_encoder, place_of
from tokenprune.methods.registry import all_classes, all_methods
from tokenprune.signals.table import SIGNALS

METHODS = {name.replace(" ", "-").replace("source=", ""): method for name, method in variants()}
METHODS |= {name: cls() for name, cls in all_classes().items() if cls.stage_of is not None}
METHODS["todre_migration"] = replace(METHODS["todre_migration"], share=2.0)  # always low enough
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
LOGITS = {"output_logits": True, "return_dict_in_generate": True}
POLICIES = ("original", "compact")
BATCHES = {
    "one": [[3, Picture(4, 6), 5]],
    "padded": [[3, Picture(4, 6), 5], [2, Picture(3, 4), 4, Picture(4, 3), 6]],
    "text-only row": [[7], [2, Picture(4, 4), 6], [1, Picture(5, 3), 2]],
    "mixed": [[3, Picture(4, 6), 5], [2, Picture(3, 4), 4, Picture(4, 3), 6], [6], [9, Picture(4, 6), 2]],
}
CLIPS = [[3, Video(2, 3, 2), 5], [2, Video(2, 3, 4), 4, Video(2, 2, 3), 6], [9]]
TAKEN = inspect.signature(LlavaForConditionalGeneration.forward).parameters
CACHE = next(name for name in ("cache", "past_key_values") if name in TAKEN)  # the newer name since transformers 5.24
NO_ENCODER = ("fast_vlm", "perception_lm", "got_ocr2")
ROTATES_BY_THREE = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "glm46v", "glm4v_moe"),
    *("paddleocr_vl", "ernie4_5_vl_moe", "hunyuan_vl"),
)
ANCHORS = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3")  # one for each way in which families differ
VIDEO_ANCHORS = ("llava", "qwen2_5_vl", "qwen3_vl")  # the same for methods of frames, to which an image is one


def seen(method):
    """What the engine can see of a method in a model of six layers: where its stages stand, the signals they read, and
    whether rows are mixed, chosen by whole pictures or set aside. Features are there for all, and which tensor of which
    encoder layer a stage reads makes no difference (`test_signals`), but how its attention is read does."""
    stages = [stage for _, stage in method.schedule(6)]
    places = [place_of(at) for at, _ in method.schedule(6)]
    given = signals(36)

    def read(need):
        return f"{'encoder' if SIGNALS[need.signal].encoder else need.signal} {need.variant}".strip()

    mixes = any(
        select(replace(s, keep=0.5), grid=(1, 6, 6), **given).weights is not None for s in stages if not s.recalls
    )
    return (
        places[0].order > Layer(0).order,
        len(places) > 1,
        mixes,
        method.scope,
        any(stage.sets_aside for stage in stages),
        sorted({read(need) for stage in stages for need in stage.needs} - {"features", "encoder"}),
    )


PLANS = {
    name: lambda keep, method=method: (
        method.name,
        {f.name: getattr(method, f.name) for f in options_of(type(method))} | {"keep": keep},
    )
    for name, method in METHODS.items()
    if not (method.sets_aside or method.recalls)  # such phases only run together
    and not method.decodes  # `test_decoding`
    and not any(in_encoder(at) for at, _ in method.schedule(6))  # `test_encoder_stages`
    and not any(SIGNALS[need.signal].given for need in method.needs)
    and method.merges_in == "projected"  # else the oracle cannot mix rows; `test_merging_before_the_projector`
}
CLASSES = {plan: seen(METHODS[plan]) for plan in PLANS} | {plan: plan for plan in STAGES}
PLANS = {plan: PLANS[plan] for plan in sorted(PLANS, key=CLASSES.get)}  # plans that are alike stand side by side
OF_FRAMES = [plan for plan in PLANS if METHODS[plan].kind.startswith("video") and plan in all_methods()]


def works(family, plan):
    """Whether a family gives the signals of a plan; `test_missing_signals_are_refused` holds it to that."""
    if plan in STAGES:
        return True
    needs = METHODS[plan].needs
    if any(SIGNALS[n.signal].encoder for n in needs) and family.name in NO_ENCODER:
        return False
    lacking = {"rope_weight": family.name in ROTATES_BY_THREE}
    lacking["saliency_first"] = family.name in ("qwen2_5_vl", "exaone4_5")  # first layers of windows
    return not any(lacking.get(n.signal) or (n.variant in ("cls", "joint") and not family.cls) for n in needs)


def fits(name, plan, everywhere):
    """Whether a family runs a plan in a test that has `everywhere` on all of them, others on the anchors alone."""
    method = METHODS.get(plan)
    if method is not None and "video" in method.kind:
        if everywhere is None:
            return plan in all_methods() or name in VIDEO_ANCHORS
        return name in (VIDEO_ANCHORS if plan in all_methods() else VIDEO_ANCHORS[1:2])
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
        turns = POLICIES
        if plan not in both and family.name not in both:
            turns = turns[number % 2 :][:1]
        params += [pytest.param(family, plan, policy, id=f"{cell.id}-{policy}") for policy in turns]
    return params


def times(found, choices):
    """Each case with each choice for one more argument."""
    return [
        pytest.param(*values_of(case), choice, id=f"{case.id}-{choice}".replace("torch.", ""))
        for case in found
        for choice in choices
    ]


def one_each(product, wanted):
    """Of a product one case for each family and plan that it has, position policies by turns."""
    found = []
    for number, (name, plan) in enumerate(wanted):
        own = [case for case in product if case.values[:2] == (FAMILIES[name], plan)]
        found += own[number % max(len(own), 1) :][:1]
    return found


def besides(taken, product):
    """The cases of a product that are not taken already."""
    ids = {case.id for case in taken}
    return [case for case in product if case.id not in ids]


# Class by class and the anchors first, so that what is wrong shows early.
PRODUCT = sorted(
    policies(cells([*PLANS, *STAGES]), both=[*ANCHORS, *STAGES]),
    key=lambda case: (case.values[0].name not in ANCHORS, [*PLANS, *STAGES].index(case.values[1])),
)
WITH_VIDEOS = policies(
    cells([*PLANS, *STAGES], everywhere=["fopru", "downsample", *OF_FRAMES, *STAGES], video=True), both=STAGES
)
# What every run has, whatever its seed, and what is run on every version of transformers: a stage before the LLM,
# one inside and several on each family, stages of other kinds on the anchors.
KINDS = ["tome", "visionzip", "sparsevlm", "lvlm_csp", "dart", "pyramiddrop", "feather", "four stages", "drop all"]
SAMPLE = one_each(
    PRODUCT,
    [
        (name, plan)
        for name, family in FAMILIES.items()
        for plan in ["fopru" if works(family, "fopru") else "divprune", "fastv", "divprune+fastv"]
    ]
    + [(name, plan) for name in ANCHORS for plan in KINDS],
)
SAMPLE_WITH_VIDEOS = one_each(
    WITH_VIDEOS,
    [(name, "divprune+fastv") for name, family in FAMILIES.items() if family.has_video]
    + [(name, plan) for name in ("qwen2_5_vl", "qwen3_vl", "llava_onevision") for plan in ("dycoke", "fastvid")],
)
FAMILY = [pytest.param(family, id=name) for name, family in FAMILIES.items()]


def by_family(family, *_):
    """Each family."""
    return family.name


def by_class(family, plan, *_):
    """What the engine sees of a plan on an anchor; any of them on another family."""
    return family.name, family.name in ANCHORS and str(CLASSES[plan])


def by_anchor(family, *_):
    """Each anchor, and all other families."""
    return family.name if family.name in ANCHORS else ""


few_families = cases("family", FAMILY, by_anchor)  # in place of the fixture


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


def done(run, every=1):
    """What the oracle has to repeat; `every`: of a batch expanded by that much, the first copy of each row."""
    waits = [stage.at for stage in run.stages if stage.method.sets_aside or stage.method.recalls]
    merges = {
        stage.at: [(row // every, *rest) for row, *rest in merged if row % every == 0]
        for stage, merged in zip(run.stages, run.merges, strict=True)
    }
    kept = {at: rows[::every] for at, rows in kept_by_layer(run).items()}
    return {"stages": kept, "merges": merges, "bypass": tuple(waits) or None}


def alive_rows(run, inputs, placeholders):
    """bool [B, L]: tokens that reach the last layer."""
    alive = inputs["attention_mask"].bool() & ~torch.isin(inputs["input_ids"], torch.tensor(placeholders))
    for row, kept in enumerate(kept_by_layer(run)[run.stages[-1].at]):
        alive[row, kept] = True
    return alive


def state_of(model):
    """Everything removal must give back: attribute names and hook counts of each module, the attention table."""
    modules = {
        name: (sorted(vars(m)), len(m._forward_pre_hooks), len(m._forward_hooks), len(m._forward_hooks_with_kwargs))
        for name, m in model.named_modules()
    }
    return modules, dict(ALL_ATTENTION_FUNCTIONS._local_mapping), dict(ALL_ATTENTION_FUNCTIONS._global_mapping)


def cache_of(output):
    """The cache that a forward or generate() gives back."""
    return output[CACHE]


@functools.cache
def unpruned(family, model):
    """What the model itself makes of the padded batch: logits, and what generate() writes."""
    inputs = family.inputs(BATCHES["padded"])
    with torch.no_grad():
        return model(**inputs).logits, model.generate(**inputs, **GREEDY)


def close(found, expected, law):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0, msg=lambda text: f"{law}: {text}")


def check_run(family, model, rows, plan, positions, alone=None):
    """Laws 2 to 6 on one run of one padded batch. alone: rows to compare with the batch, by default all of them where
    nothing is drawn, and one."""
    if alone is None:
        own = [i for i, row in enumerate(rows) if len(row) > 1]
        alone = range(len(rows)) if everything() else drawn(own, lambda _: None, f"{family.name} {plan}")
    inputs = family.inputs(rows)
    before, noise = state_of(model), torch.get_rng_state()
    with torch.no_grad(), attach(model, plan, positions) as run:
        prefill = model(**inputs, use_cache=True)
        first, alive = done(run), alive_rows(run, inputs, family.placeholder)
        check_counts(family, run, inputs, rows)
        check_cache(family, run, inputs, cache_of(prefill))
        out = model.generate(**inputs, **GREEDY, **LOGITS)
        then, kept = done(run), run.kept
        check_rows_alone(family, run, rows, inputs, out, kept, alone)
    assert torch.equal(torch.get_rng_state(), noise), "law 5: the global random state was used"
    assert state_of(model) == before, "law 2: something stayed on the model"
    check_logits(family, run, inputs, prefill.logits, alive, first, out, then, positions)


def check_oracle(family, model, rows, plan, positions):
    """Law 3 alone."""
    inputs = family.inputs(rows)
    with torch.no_grad(), attach(model, plan, positions) as run:
        logits = model(**inputs).logits
        first, alive = done(run), alive_rows(run, inputs, family.placeholder)
        out = model.generate(**inputs, **GREEDY, **LOGITS)
        then = done(run)
    check_logits(family, run, inputs, logits, alive, first, out, then, positions)


def check_logits(family, run, inputs, logits, alive, first, out, then, positions):
    """Law 3: the prompt's logits [B, L, V] where tokens are `alive`, and those of every step."""
    model, compact = run.model, positions == "compact"
    # Decoding lengthens the prompt by the tokens that were generated; all of them are text.
    grown = family.grown(inputs, out.sequences)
    expected = oracle_logits(family, model, grown, compact=compact, **then)
    length = inputs["input_ids"].shape[1]
    for step, scores in enumerate(out.logits):
        close(scores, expected[:, length - 1 + step], f"law 3, step {step}")
    prompt = expected[:, :length]
    if any(need.signal == "keys" for stage in run.stages for need in stage.method.needs):
        # Rotated keys differ where generate() does not count padding as tokens, and so may what is kept.
        prompt = oracle_logits(family, model, inputs, compact=compact, **first)
    else:
        pairs = [pair for at in first["stages"] for pair in zip(first["stages"][at], then["stages"][at], strict=True)]
        assert all(torch.equal(a, b) for a, b in pairs), "law 7: generate() keeps others than the forward pass"
    close(logits[alive], prompt[alive], "law 3, prompt")


def check_counts(family, run, inputs, rows):
    """Law 5: exactly k unique ascending prompt columns of visual tokens."""
    for stage in run.kept:
        for row, columns in enumerate(stage):
            assert columns.dtype == torch.long
            assert torch.equal(columns, columns.unique()), "law 5: columns that are not ascending and unique"
            assert torch.isin(inputs["input_ids"][row, columns], torch.tensor(family.placeholder)).all(), "law 5"
    method, scope = run.stages[0].method, run.stages[0].scope
    if method.keep is None or method.name.startswith("framefusion"):
        return  # they find the number themselves: `test_framefusion_meets_its_mean`
    for row, columns in zip(rows, run.kept[0], strict=True):
        pictures = [[t * h * w for t, h, w in family.spans(part)] for part in row if not isinstance(part, int)]
        counts = [n for picture in pictures for n in picture] if scope == "part" else map(sum, pictures)
        assert len(columns) == sum(n_keep(method.keep, n, method.rounding) for n in counts), "law 5: another number"


def check_cache(family, run, inputs, cache):
    """Law 6: rows of each layer's keys, the report's tokens and bytes, and the length that decoding goes on from."""
    length = inputs["input_ids"].shape[1]
    marks = torch.isin(inputs["input_ids"], torch.tensor(family.placeholder))
    texts = (inputs["attention_mask"].bool() & ~marks).sum(1).tolist()
    visual = sum(span.count for span in run.spans)
    kept, report = kept_by_layer(run), run.report()
    # Where a stage looks ahead and drops nothing, its layer does not yet forget what has left its window.
    ahead = any(need.variant == "next" for stage in run.stages for need in stage.method.needs)
    for i, (layer, kind) in enumerate(zip(cache.layers, run.layer_kinds, strict=True)):
        stages = [n for n, stage in enumerate(run.stages) if stage.at <= i]
        tokens = sum(map(len, run.kept[stages[-1]])) if stages else visual
        alive = map(len, kept[run.stages[stages[-1]].at]) if stages else []
        held = max(map(sum, zip(texts, alive, strict=True))) if stages else length
        if kind.window is not None and not ahead:
            held = min(held, kind.window - 1)
        rows = layer.keys.shape[2]
        assert rows == held if kind.window is None else 0 < rows <= held, f"law 6, layer {i}"
        assert report.layer_tokens[i] == tokens, f"law 6, layer {i}"
        assert layer.get_seq_length() == length, f"law 6, layer {i}"
    assert report.kv_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers), "law 6"
    assert report.kv_bytes < report.dense_kv_bytes, "law 6"


def check_rows_alone(family, run, rows, inputs, out, kept, alone):
    """Law 4: a row of a padded batch keeps and says what it does by itself."""
    if family.moves_rows and any(need.signal == "keys" for stage in run.stages for need in stage.method.needs):
        return
    for i in alone if not family.counts_images else [0]:
        single = family.inputs([rows[i]], first=i)
        padding = inputs["input_ids"].shape[1] - single["input_ids"].shape[1]
        own = run.model.generate(**single, **GREEDY, **LOGITS)
        if len(rows[i]) > 1:
            found = [stage[0].tolist() for stage in run.kept]
            assert found == [(stage[i] - padding).tolist() for stage in kept], f"law 4, row {i} keeps others"
        for step, (scores, together) in enumerate(zip(own.logits, out.logits, strict=True)):
            close(scores[0], together[i], f"law 4, row {i}, step {step}")


def check_static_cache(family, model, positions):
    """Laws 3 and 6: right, and allocated at its real length."""
    batch = "padded" if positions == "original" else "one"
    inputs = family.inputs(BATCHES[batch])
    length = inputs["input_ids"].shape[1]
    model.__dict__.pop("_previous_max_cache_length", None)  # generate() remembers the longest
    with attach(model, "divprune+fastv", positions) as run:
        out = model.generate(**inputs, **GREEDY, **LOGITS, cache_implementation="static")
        kept = kept_by_layer(run)
        report = run.report()
    expected = oracle_logits(family, model, family.grown(inputs, out.sequences), kept, positions == "compact")
    for step, scores in enumerate(out.logits):
        close(scores, expected[:, length - 1 + step], f"law 3, step {step}")
    longest = length + GREEDY["max_new_tokens"] - 1
    visual = torch.isin(inputs["input_ids"], torch.tensor(family.placeholder)).sum(1)
    for at, rows in kept.items():
        padding = inputs["attention_mask"].eq(0).sum(1)
        held = max(longest - int(p) - int(n) + len(row) for p, n, row in zip(padding, visual, rows, strict=True))
        assert cache_of(out).layers[at].keys.shape[2] in (held, held + 1)
    assert report.kv_bytes < report.dense_kv_bytes
