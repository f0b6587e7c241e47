"""`tokenprune.check` and `prune(verify=)`: right runs pass, planted faults are found and named."""

from __future__ import annotations

import ast
import json
import logging
import warnings
from itertools import product
from pathlib import Path

import pytest
import torch

import tokenprune
from eval.results import read
from tests.draw import cases
from tests.tiny import BREAK, FAMILIES, IMAGE, VIDEO, Picture, Video
from tokenprune import BadInput, DivPrune, FastV, Stage, Uniform, Unsupported, check, prune
from tokenprune.checking import verify
from tokenprune.engine import masks
from tokenprune.engine.forward import Forward
from tokenprune.engine.token_state import TokenState
from tokenprune.version import TESTED_TRANSFORMERS

PADDED = [[3, Picture(4, 6), 5], [2, Picture(3, 4), 4, Picture(4, 3), 6], [7]]
CLIPS = [[3, Video(2, 3, 2), 5], [2, Video(2, 3, 4), 4, Video(2, 2, 3), 6], [9]]
GREEDY = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO, BREAK]}
STAGED = [Stage(0, DivPrune(keep=0.8)), Stage(2, FastV(keep=0.6)), Stage(4, Uniform(keep=1))]
PASSING = {
    "llava": ("divprune", {"keep": 0.3}, PADDED),
    "llava_next": ("tome", {"keep": 0.3}, PADDED),
    "qwen2_5_vl": (STAGED, {"positions": "compact"}, PADDED),
    "qwen3_vl": ("fastvid", {"keep": 0.3}, CLIPS),
    "gemma3": ("fastv", {"keep": 0.3}, PADDED),
    "internvl": ("lvlm_csp", {"keep": 0.3}, PADDED),
    "llava_onevision": ("dycoke_kv", {"keep": 0.3}, CLIPS),
    "paligemma2": ("pyramiddrop", {}, PADDED),
}


@cases("name", list(PASSING), lambda name: list(PASSING).index(name) // 2)
def test_right_runs_pass(name, tiny_models):
    family, (method, plan, rows) = FAMILIES[name], PASSING[name]
    found = check(tiny_models(family), family.inputs(rows), method, new_tokens=2, **plan)
    assert found.ok, str(found)
    assert found.pruned < 1e-5
    assert found.keep_all < 1e-5
    assert all(after < before for _, _, before, after in found.stages[-1:])
    assert str(found).startswith("holds: model ")


def wrong_positions(monkeypatch):
    """From the second stage on, renumbered rows stand one further from each other."""
    right = TokenState._renumber

    def wrong(self, keep):
        positions, moved = right(self, keep)
        return positions * (1 + self.shortened), moved

    monkeypatch.setattr(TokenState, "_renumber", wrong)


def wrong_rows(monkeypatch):
    """What layers get from the third on is the state of the token before."""
    right = Forward._shorten

    def wrong(self, chosen, hidden, policy):
        hidden = right(self, chosen, hidden, policy)
        return hidden.roll(1, dims=1) if len(self.records) == 1 else hidden

    monkeypatch.setattr(Forward, "_shorten", wrong)


def wrong_mask(monkeypatch):
    """Padding is visible."""
    right = masks._visible
    monkeypatch.setattr(
        masks, "_visible", lambda slots, past, length, valid, *others: right(slots, past, length, None, *others)
    )


def wrong_shift(monkeypatch):
    """Decoding goes on from the unpruned length, although the prompt was renumbered."""
    right = Forward.enter_group
    monkeypatch.setattr(Forward, "enter_group", lambda self, layer: right(self, None if self.piece.past else layer))


FAULTS = {
    wrong_positions: ("prompt", 2, 1),
    wrong_rows: ("prompt", 2, 1),
    wrong_mask: ("prompt", 0, 0),
    wrong_shift: ("decoding step 1", None, None),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_planted_faults_are_found_and_named(fault, monkeypatch, tiny_models):
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs(PADDED)
    fault(monkeypatch)
    found = check(model, inputs, STAGED, positions="compact")
    when, layer, stage = FAULTS[fault]
    assert not found.ok
    assert found.parted is not None
    assert found.parted.difference > found.parted.allowed
    assert when in str(found)
    if layer is not None:
        assert (found.parted.layer, found.parted.stage) == (layer, stage)
    assert f"row {found.parted.row}, column {found.parted.column}" in str(found)
    if fault is wrong_mask:
        assert inputs["attention_mask"][found.parted.row].min() == 0, "only padded rows see padding"


def test_a_fault_at_keep_all_is_found(monkeypatch, tiny_models):
    right = Forward.run_stage
    monkeypatch.setattr(Forward, "run_stage", lambda self, *a: 1.01 * right(self, *a))
    family = FAMILIES["llava"]
    found = check(tiny_models(family), family.inputs(PADDED), "fastv", keep=0.3)
    assert found.parted_at_all is not None
    assert (found.parted_at_all.layer, found.parted_at_all.stage) == (2, 0)
    assert "DOES NOT HOLD" in str(found)


def test_attention_kernels_and_half_precision(tiny_models, plain_flex):
    family = FAMILIES["llava"]
    for attention in ("eager", "flex_attention"):
        model = tiny_models(family, attention)
        before = model.config.text_config._attn_implementation
        assert check(model, family.inputs(PADDED), "uniform", keep=0.3, new_tokens=1).ok
        assert model.config.text_config._attn_implementation == before
    for dtype in (torch.bfloat16, torch.float64):
        model = family.build().to(dtype)
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in family.inputs(PADDED).items()}
        found = check(model, inputs, "uniform", keep=0.3, new_tokens=1)
        assert found.ok, str(found)
    assert found.pruned < 1e-12


def test_given_signals(tiny_models):
    family, made = FAMILIES["llava"], torch.Generator().manual_seed(0)
    given = {"frame_scores": [torch.rand(1, generator=made)]}
    inputs = family.inputs([[3, Picture(4, 6), 5]])
    assert check(tiny_models(family), inputs, "quota", keep=0.3, give=given).ok


def test_what_cannot_be_compared_is_refused(tiny_models):
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs(PADDED)
    with pytest.raises(BadInput, match="new_tokens=0 is not a number of decoding steps"):
        check(model, inputs, "uniform", keep=0.3, new_tokens=0)
    with pytest.raises(BadInput, match="needs the inputs of the model with input_ids"):
        check(model, {"pixel_values": inputs["pixel_values"]}, "uniform", keep=0.3)
    with pytest.raises(BadInput, match="Check merge_in='projected'"):
        check(model, inputs, "visionzip", keep=0.3, merge_in="encoder")
    with pytest.raises(BadInput, match=r"Call model\.eval"):
        check(family.build().train(), inputs, "uniform", keep=0.3)
    with pytest.raises(BadInput, match=r"Unknown method or recipe 'unifrom'\. Did you mean 'uniform'"):
        check(model, inputs, "unifrom", keep=0.3)
    with prune(model, "uniform", keep=0.3), pytest.raises(Unsupported, match="already pruned"):
        check(model, inputs, "uniform", keep=0.3)


def test_the_reference_knows_nothing_of_the_engine():
    path = Path(tokenprune.__file__).parent / "checking" / "reference.py"
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [a.name for node in nodes for a in node.names] + [getattr(node, "module", "") for node in nodes]
    assert not [name for name in names if name.startswith("tokenprune")]


@pytest.fixture
def unseen(monkeypatch):
    """A transformers that nobody has tested."""
    monkeypatch.setattr(verify, "TESTED_TRANSFORMERS", ("5.1",))


@cases(
    "name, cache",
    list(product(["llava", "qwen3_vl", "gemma3"], [{}, {"cache_implementation": "static"}, {"use_cache": False}])),
    lambda _, cache: str(cache),
)
def test_an_unseen_version_is_verified_on_the_first_prompt(name, cache, unseen, tiny_models):
    family = FAMILIES[name]
    if family.name == "gemma3" and cache.get("cache_implementation"):
        pytest.skip("sliding windows in a static cache are refused")
    model, inputs = tiny_models(family), family.inputs(PADDED)
    with prune(model, "divprune", keep=0.3, verify="never"):
        expected = model.generate(**inputs, **GREEDY, **cache)
    with prune(model, "divprune", keep=0.3):
        with pytest.warns(
            UserWarning, match=r"was not tested with transformers .*compared with its reference and holds"
        ):
            found = model.generate(**inputs, **GREEDY, **cache)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            model.generate(**inputs, **GREEDY, **cache)
    assert torch.equal(found, expected)


def test_an_unseen_version_that_is_wrong_raises_every_time(unseen, monkeypatch, tiny_models):
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs(PADDED)
    with torch.no_grad():
        dense = model(**inputs).logits
    wrong_rows(monkeypatch)
    with torch.no_grad(), prune(model, STAGED):
        for _ in range(2):
            with pytest.raises(
                Unsupported,
                match=r"is wrong: .* in the prompt at layer 2 \(after stage 1\), row \d, column \d+: off by",
            ):
                model(**inputs)
        text = {name: value[-1:] for name, value in inputs.items() if name != "pixel_values"}
        model(**text)
    with torch.no_grad(), prune(model, STAGED, verify="never"):
        model(**inputs)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, dense)


def test_verify_is_asked_for_or_not(monkeypatch, tiny_models):
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs(PADDED)
    wrong_rows(monkeypatch)
    assert verify.is_tested(), (
        "add the installed transformers to TESTED_TRANSFORMERS once `make test-versions` passes on it"
    )
    with torch.no_grad(), prune(model, STAGED):
        model(**inputs)
    with torch.no_grad(), prune(model, STAGED, verify="always"), pytest.raises(Unsupported, match="is wrong"):
        model(**inputs)
    with pytest.raises(Unsupported, match=r"cannot be verified with transformers .*merge_in='projected'"):
        prune(model, "visionzip", keep=0.3, merge_in="encoder", verify="always")
    with pytest.raises(BadInput, match=r"Unknown verify 'alway'\. Did you mean 'always'"):
        prune(model, STAGED, verify="alway")


def test_a_first_prompt_that_cannot_be_verified_is_refused(unseen):
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs([[3, Picture(4, 6), 5]])
    with torch.no_grad():
        started = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True)
    name = "cache" if "cache" in started else "past_key_values"
    with torch.no_grad(), prune(model, "uniform", keep=0.3):
        longer = inputs | {"attention_mask": torch.ones(1, 3 + inputs["input_ids"].shape[1], dtype=torch.long)}
        with pytest.raises(Unsupported, match=r"this one continues a cache. Start with a new cache .* verify='never'"):
            model(**longer, **{name: started[name]})
        with pytest.warns(UserWarning, match="holds"):
            model(**inputs)
    model.train()
    with prune(model, "uniform", keep=0.3), pytest.raises(Unsupported, match="this one is in training mode"):
        model(**inputs)


def test_one_debug_line_per_stage(caplog, tiny_models):
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs([[3, Picture(6, 6), 5], [2, Picture(6, 6), 8]])
    with (
        caplog.at_level(logging.DEBUG, "tokenprune"),
        torch.no_grad(),
        prune(model, STAGED, positions="compact") as run,
    ):
        model(**inputs)
    lines = [record.getMessage() for record in caplog.records if record.name == "tokenprune"]
    assert len(lines) == len(run.stages)
    assert lines[0].startswith("stage 0 before the LLM: row 0 36 -> 29, padding 2, positions 2..")
    assert lines[1].startswith("stage 1 before layer 2: row 0 29 -> 17, padding 2, positions 2..")
    assert lines[2].endswith("(uniform)")
    for number, (line, stage) in enumerate(zip(lines, run.report().stages, strict=True)):
        for row, (before, after) in enumerate(zip(stage.before, stage.after, strict=True)):
            assert f"row {row} {before} -> {after}" in line, number
    with torch.no_grad(), prune(model, STAGED):
        caplog.clear()
        model(**inputs)
        assert not caplog.records, "nothing is computed or said unless asked for"


def test_states_print_in_a_line(tiny_models):
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs(PADDED)
    seen = []
    with torch.no_grad(), prune(model, STAGED) as run:
        handle = run.text_model.layers[3].register_forward_pre_hook(
            lambda *_: seen.append(repr(run._passes._now.forward))
        )
        out = model(**inputs, use_cache=True)
        handle.remove()
        cache = next(out[name] for name in ("cache", "past_key_values") if name in out)
        assert repr(run).startswith("Run(DivPrune(keep=0.8")
        assert "attached to a LlavaForConditionalGeneration" in repr(run)
    assert "removed from a LlavaForConditionalGeneration" in repr(run)
    assert repr(cache.layers[-1]).startswith("PrunedLayer(")
    assert seen[0].startswith("Forward(")
    assert not any("\n" in text or "tensor(" in text for text in [*seen, repr(cache.layers[-1])])


@pytest.mark.cli
def test_command(command, monkeypatch):
    code, out, _ = command("check", "--method", "fastv", "--keep", "0.25", "--positions", "compact", "--new-tokens", 1)
    assert code == 0
    assert out.startswith("holds: model LlavaForConditionalGeneration, dtype float32")
    assert "stage 0 before layer 2: fastv, 144 -> 36 visual tokens" in out
    right = Forward.run_stage
    monkeypatch.setattr(Forward, "run_stage", lambda self, *a: right(self, *a) + 0.1)
    code, out, _ = command("check", "--json", "--new-tokens", 1)
    assert code == 1
    found = json.loads(out)
    assert not found["ok"]
    assert found["parted"]["layer"] == 0


@pytest.mark.cli
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "fastvv"], "Unknown method or recipe 'fastvv'. Did you mean 'fastv'?"),
        (["--image", "picture.png"], "--image needs --prompt TEXT"),
        (["--frames", "4"], "--frames goes with --video FILE."),
        (["--image", "a.png", "--video", "b.mp4", "--prompt", "x"], "Give --image or --video, not both."),
        (["--model", "./nowhere"], "There is no model folder at ./nowhere."),
    ],
)
def test_wrong_input_is_told_in_a_line(command, arguments, says):
    code, _, err = command("check", *arguments)
    assert code == 2
    assert says in err.replace("\n", " ")


def test_tested_versions_are_those_of_the_result_file():
    rows = read("versions.json")["rows"]
    passed = {".".join(row["transformers"].split(".")[:2]) for row in rows if row["make_run"] and not row["failed"]}
    assert {*TESTED_TRANSFORMERS} <= passed, "run `make test-versions` with what is new in TESTED_TRANSFORMERS"
