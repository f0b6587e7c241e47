"""The benchmark compares the right things: its ideal is what pruning gives, its numbers are what was measured."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import tokenprune
from tests.draw import cases
from tests.laws import ANCHORS
from tests.tiny import FAMILIES, Picture
from tokenprune import Plan, cli, scenes
from tokenprune.bench import record
from tokenprune.bench.compare import Spread, compare
from tokenprune.bench.measure import Ideal, peak_memory, prompt, sample
from tokenprune.bench.workload import Workload, with_pictures_of, workload
from tokenprune.errors import BadInput


def tiny(name, rows):
    model = FAMILIES[name].build()
    inputs = FAMILIES[name].inputs(rows)
    return Workload(name, model, {k: v for k, v in inputs.items() if k != "attention_mask"})


@cases("name", list(FAMILIES), lambda name: name if name in ANCHORS else "")
def test_the_ideal_is_the_prompt_that_pruning_leaves(name):
    """A short prompt gives the logits of the pruned one: renumbered where the model counts positions itself."""
    if name.startswith("paligemma") or name == "gemma3":
        pytest.skip("its masks are made from the whole prompt; the ideal is not told of its two-way prefix")
    if name in ("aya_vision", "cohere2_vision", "exaone4_5"):
        pytest.skip("its windows are counted in the places of the whole prompt")
    work = tiny(name, [[3, Picture(4, 6), 4]])
    given = "position_ids" in _kwargs(work)
    with tokenprune.prune(work.model, "random", keep=0.3, positions="original" if given else "compact") as run:
        pruned, kept = prompt(work).logits, run.kept[-1]
        visual = sum(map(len, kept))
        ends = sum(len(span.separators) for span in run.spans)
    dense, ideal = prompt(work).logits, Ideal(work, kept)
    with ideal():
        short = prompt(work).logits
    assert ideal.short["inputs_embeds"].shape[1] < work.inputs["input_ids"].shape[1]
    assert visual == ideal.short["inputs_embeds"].shape[1] - int((~work.visual()).sum())
    if not ends:
        torch.testing.assert_close(short[:, -1], pruned[:, -1], atol=1e-4, rtol=0)
    assert torch.equal(prompt(work).logits, dense)


def _kwargs(work):
    """What the text model gets for the whole prompt."""
    found = {}

    def catch(module, args, kwargs):
        found.update({k: v for k, v in kwargs.items() if v is not None})

    handle = FAMILIES[work.name].text_model(work.model).register_forward_pre_hook(catch, with_kwargs=True)
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(handle.remove)
        prompt(work)
    return found


def test_rows_that_keep_fewer_are_as_long_as_the_longest():
    work = tiny("llava", [[3, Picture(6, 6), 4], [3, Picture(6, 6), 4]])
    columns = work.visual().nonzero()[:, 1].view(2, -1)
    ideal = Ideal(work, [columns[0, :9], columns[1, :4]])
    assert ideal.short["inputs_embeds"].shape[1] == work.inputs["input_ids"].shape[1] - 36 + 9


def test_a_sample_measures_what_it_says(monkeypatch):
    work = tiny("llava", [[3, Picture(6, 6), 4]])
    slow = tokenprune.Random.select

    def select(self, view):
        time.sleep(0.05)
        return slow(self, view)

    monkeypatch.setattr(tokenprune.Random, "select", select)
    dense = sample(work, contextlib.nullcontext, 3)
    with tokenprune.prune(work.model, "random", keep=0.25):
        pass
    pruned = sample(work, lambda: tokenprune.prune(work.model, "random", keep=0.25), 3)
    assert pruned.selection >= 50
    assert pruned.first_token >= pruned.prefill >= pruned.selection
    assert dense.selection == 0
    rows = work.inputs["input_ids"].shape[1]
    assert pruned.kv_bytes / dense.kv_bytes == pytest.approx((rows - 27) / rows)


@pytest.mark.skipif(not torch.cuda.is_available() and not Path("/proc/self/clear_refs").exists(), reason="Linux")
def test_peak_memory_sees_what_came_and_went():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with peak_memory(device) as peak:
        del (block := [torch.ones(64, 2**20, device=device)])[0]
    assert 200 * 2**20 < peak() < 400 * 2**20
    assert block == []


def test_sides_are_interleaved_and_ratios_are_of_one_round():
    work = tiny("llava", [[3, Picture(6, 6), 4]])
    seen = []
    plans = {"a": Plan.of("random", keep=0.25), "b": Plan.of("uniform", keep=0.25)}
    plans["c"] = Plan.of("fastv", keep=0.25, at=1)
    result = compare(work, plans, rounds=2, new_tokens=1, progress=seen.append)
    names = [text.partition(": ")[2] for text in seen]
    assert names == ["dense", "c", "a", "ideal of a", "b", "ideal of b"] * 3
    a, _, c = result.outcomes
    assert a.tokens == (36, 9.0, 9)
    assert a.promised > c.promised > 1
    assert a.ideal is not None
    assert c.ideal is None
    assert result.to_dict()["outcomes"][2]["over_ideal"] is None


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_the_ideal_of_a_stage_before_the_encoder_is_a_smaller_picture(name):
    work = tiny(name, [[3, Picture(4, 6), 4], [3, Picture(4, 6), 4]])
    short = with_pictures_of(work, 12)
    assert short.visual().sum(1).tolist() == [12, 12]
    assert short.inputs["image_grid_thw"].tolist() == [[1, 6, 8]] * 2
    assert len(short.inputs["pixel_values"]) == 2 * 48
    assert torch.equal(short.inputs["input_ids"][:, :1], work.inputs["input_ids"][:, :1])
    plans = {"both": Plan.of("uniform", keep=0.5, at="pixels"), "llm": Plan.of("uniform", keep=0.5)}
    both, llm = compare(work, plans, rounds=1, new_tokens=0).outcomes
    assert both.first_over_ideal is not None
    assert llm.first_over_ideal is not None
    assert both.tokens == llm.tokens == (48, 24.0, 24)


def test_a_picture_of_one_size_has_no_smaller_ideal():
    work = tiny("llava", [[3, Picture(6, 6), 4]])
    assert with_pictures_of(work, 9) is None
    (found,) = compare(work, {"a": Plan.of("uniform", keep=0.25, at="pixels")}, rounds=1, new_tokens=0).outcomes
    assert found.first_over_ideal is None


def test_shapes_have_a_prompt_for_each_number_of_tokens():
    with pytest.raises(BadInput, match="has prompts of 1296, 5184 visual tokens"):
        workload("qwen2.5-vl-3b", 576)


def test_it_says_where_pruning_does_not_pay():
    work = tiny("llava", [[3, Picture(6, 6), 4]])
    outcome = compare(work, {"a": Plan.of("random", keep=0.25)}, rounds=1, new_tokens=1).outcomes[0]

    def told(**changes):
        ratios = {"speedup": Spread(2, 2, 2), "first_token": Spread(2, 2, 2), "token": Spread(1, 1, 1)}
        return " ".join(replace(outcome, **ratios | changes).warnings())

    assert "does not pay: its first token takes 2.00 x dense" in told(first_token=Spread(0.5, 0.4, 0.6))
    assert "not all rounds" in told(first_token=Spread(1.2, 0.9, 1.3))
    assert "a decoding step takes 2.00 x dense" in told(token=Spread(0.5, 0.4, 0.6))
    assert told() == ""
    times = outcome.pruned.times | {"selection": Spread(9, 9, 9), "prefill": Spread(10, 10, 10)}
    slow = replace(outcome.pruned, times=times)
    assert "choosing takes 9.0 ms" in told(pruned=slow, speedup=Spread(1.1, 1.1, 1.1))


def run_cli(*arguments):
    return CliRunner().invoke(cli.app, ["bench", *map(str, arguments)])


@pytest.mark.cli
def test_bench_on_the_command_line(tmp_path):
    own = ["--model", scenes.MODEL, "--image", scenes.IMAGE, "--prompt", scenes.QUESTION, "--rounds", 1]
    done = run_cli(
        *own, "--method", "divprune,visionzip_64", "--new-tokens", 1, "--batch", 2, "--save", tmp_path / "r.json"
    )
    assert done.exit_code == 0, done.output
    assert "divprune" in done.output
    saved = json.loads((tmp_path / "r.json").read_text())
    assert [one["label"] for one in saved["outcomes"]] == ["divprune", "visionzip_64"]
    assert saved["outcomes"][0]["tokens"] == [288, 28.0, 28]
    assert saved["versions"]["torch"] == torch.__version__
    printed = run_cli(*own, "--new-tokens", 0, "--json")
    assert json.loads(printed.stdout)["batch"] == 1


@pytest.mark.cli
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "divprun"], "Did you mean 'divprune'"),
        (["--shape", "llama"], "Unknown shape 'llama'"),
        (["--tokens", "100"], "prompts of 576, 2304, 6272"),
        (["--image", "a.png"], "go with --model"),
        (["--model", "somewhere"], "--model needs --image"),
        (["--keep", "2.5"], "above 1"),
    ],
)
def test_bench_refuses_what_it_cannot_measure(arguments, message):
    error = run_cli(*arguments).exception
    assert isinstance(error, BadInput)
    assert message in str(error)


def test_a_result_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="Cannot write the result"):
        record.write(tmp_path / "file" / "r.json", {})


def test_workloads_have_the_tokens_they_say():
    work = workload("llama-1024", 576, batch=2)
    assert work.visual().sum(1).tolist() == [576, 576]
    assert work.inputs["input_ids"].shape == (2, 612)
