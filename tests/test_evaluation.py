"""Grids of cells: run once, resumed, tabled; published tables as files; results as a page."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from lmms_eval import tasks as harness_tasks
from PIL import Image
from selenium.webdriver.common.by import By

from eval.results import read as committed
from tests.browser import browser, complaints, needs_browser, shot
from tokenprune import BadInput
from tokenprune.evaluation import cells
from tokenprune.evaluation.cells import Cell, Cost, Result, read_all
from tokenprune.evaluation.grid import Benchmark, benchmark_names, grid, load_benchmark
from tokenprune.evaluation.harness import arguments
from tokenprune.evaluation.page import page
from tokenprune.evaluation.pareto import front, pareto
from tokenprune.evaluation.tables import against, overview
from tokenprune.methods.base import make_method
from tokenprune.methods.registry import all_methods

TASKS = Path(harness_tasks.__file__).parent


def result(label, score, method="divprune", tokens=36.0, task="scenes", **options):
    cell = Cell(label=label, task=task, pretrained="scenes", method=method, options=options)
    cost = Cost(
        measured=4,
        visual_tokens=144,
        kept_tokens=tokens,
        average_tokens=tokens,
        prefill_ms=tokens / 2,
        prefill_range=(tokens / 3, tokens),
        kv_bytes=2048,
    )
    return Result(cell=cell, scores={"score": score, "colour": 1.0}, questions=4, cost=cost, seconds=1.0)


def test_a_grid_runs_once_and_goes_on_where_it_stopped(command, packed_tasks, tmp_path):
    """A cell that is there is left alone; one that was stopped half-way is run again."""
    asked = ("eval", "--model", "scenes", "--tasks", "scenes", "--methods", "divprune,fastv_k2_r50", "--keep", "0.25")
    where = ("--include-path", packed_tasks, "--out", tmp_path / "out", "--batch", 4, "--limit", 8, "--device", "cpu")
    code, out, err = command(*asked, *where)
    assert code == 0, err
    assert [line for line in out.splitlines() if "/3" in line] == [
        "1/3 scenes: none",
        "2/3 scenes: divprune 0.25",
        "3/3 scenes: fastv_k2_r50",
    ]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.json")}
    assert len(files) == 3
    samples = [json.loads(line) for path in files for line in _samples(path).read_text().splitlines()]
    assert len(samples) == 24
    assert {"doc_id", "target", "answer", "kept_tokens", "prefill_ms", "kv_bytes"} <= samples[0].keys()
    gone = next(path for path in files if "divprune" in path.name)
    gone.unlink()
    (gone.parent / f"{gone.name}.123").write_text('{"half')  # what a kill in the middle of writing leaves
    code, out, err = command(*asked, *where)
    assert code == 0, err
    assert [line for line in out.splitlines() if "/3" in line] == ["3/3 scenes: divprune 0.25"]
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.json")}
    assert {path for path in files if after[path] != files[path]} == {gone}
    found = {r.cell.label: r for r in read_all(tmp_path / "out")}
    assert found["divprune 0.25"].cost.kept_tokens == 36
    assert found["fastv_k2_r50"].cost.average_tokens == 144 * (2 + 6 * 0.5) / 8
    assert found["none"].cost.average_tokens == 144
    code, out, _ = command("results", tmp_path / "out", "--markdown", tmp_path / "t.md", "--html", tmp_path / "i.html")
    assert code == 0
    assert "| divprune 0.25 |" in (tmp_path / "t.md").read_text()
    assert "http" not in re.sub(r"data:[^\"]*", "", (tmp_path / "i.html").read_text()).replace("http-equiv", "")


def test_a_grid_through_lmms_evals_own_model(command, packed_tasks, tmp_path):
    asked = ("eval", "--model", "scenes", "--tasks", "scenes", "--methods", "uniform", "--keep", "36", "--limit", 2)
    through = ("--through", "tokenprune_llava_hf", "--model-args", "device_map=cpu,dtype=float32", "--device", "cpu")
    code, _, err = command(*asked, *through, "--include-path", packed_tasks, "--out", tmp_path)
    assert code == 0, err
    assert [r.cost.kept_tokens for r in read_all(tmp_path)] == [144, 36]


def _samples(path):
    return path.parent / "samples" / f"{path.stem}.jsonl"


def test_other_questions_are_other_cells():
    """Everything that changes an answer changes the file's name; the label does not."""
    cell = Cell(label="a", task="scenes", pretrained="m", method="divprune", options={"keep": 0.1})
    changes = dict(task="gqa", pretrained="n", method="fastv", options={"keep": 0.2}, limit=3, batch_size=2)
    changes |= dict(model="tokenprune_llava_hf", arguments={"dtype": "float16"})
    names = {cell.model_copy(update={key: value}).name.rpartition("_")[2] for key, value in changes.items()}
    assert len(names | {cell.name.rpartition("_")[2]}) == len(changes) + 1
    assert cell.model_copy(update={"label": "b"}).name == cell.name


def test_the_harness_is_told_everything():
    cell = Cell(
        label="a", task="t", pretrained="m", method="fastv", options={"keep": 0.1}, arguments={"dtype": "float16"}
    )
    assert arguments(cell) == "pretrained=m,dtype=float16,method=fastv,keep=0.1"
    with pytest.raises(BadInput, match="recipe file"):
        arguments(cell.model_copy(update={"options": {"order": (1, 2)}}))


def test_grids_hold_every_budget_and_the_unpruned_model_once():
    found = grid("m", ["a", "b"], ["divprune", "none", "sparsevlm_64", "divprune"], [0.5, 64], positions="compact")
    assert [cell.label for cell in found[:4]] == ["none", "divprune 0.5", "divprune 64", "sparsevlm_64"]
    assert len(found) == 8
    assert found[1].options == {"keep": 0.5, "positions": "compact"}
    assert found[3].options == {"positions": "compact"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "scenes"), "Give --benchmark NAME, or --model MODEL and --tasks NAMES."),
        (("--benchmark", "scene"), "Did you mean 'scenes'?"),
        (("--benchmark", "x.yaml"), "no benchmark file x.yaml"),
        (("--model", "scenes", "--tasks", "scenes", "--methods", "divprun"), "Did you mean 'divprune'?"),
        (("--model", "scenes", "--tasks", "scenes", "--keep", "much"), "--keep much: give numbers"),
        (("--model", "scenes", "--tasks", "scenes", "--keep", "1.5"), "1.5"),
        (("--model", "scenes", "--tasks", "scenes", "--model-args", "dtype"), "write name=value"),
        (("--model", "scenes", "--tasks", "scenez", "--include-path", "{tasks}"), "Did you mean 'scenes'"),
        (("--model", "scenes", "--tasks", "scenes", "--include-path", "nowhere"), "no folder nowhere"),
        (("--model", "scenes", "--tasks", "scenes", "--through", "tokenprun"), "Did you mean 'tokenprune'?"),
    ],
)
def test_wrong_grids(command, packed_tasks, tmp_path, arguments, message):
    arguments = [text.format(tasks=packed_tasks) for text in arguments]
    code, _, err = command("eval", *arguments, "--out", tmp_path)
    assert code == 2
    assert message in " ".join(err.split())


def test_what_the_demo_needs_is_named(command, monkeypatch):
    monkeypatch.setattr(sys.modules["tokenprune.cli.demo"], "find_spec", lambda name: None)
    code, _, err = command("demo")
    assert code == 2
    assert "pip install 'tokenprune[demo]'" in " ".join(err.split())


def test_wrong_results(command, tmp_path):
    code, _, err = command("results", tmp_path / "nowhere")
    assert (code, "no folder" in err) == (2, True)
    code, _, err = command("results", tmp_path)
    assert (code, "holds no results" in err) == (2, True)
    (tmp_path / "x.json").write_text("{}")
    code, _, err = command("results", tmp_path)
    assert (code, "is no result of `tokenprune eval`" in " ".join(err.split())) == (2, True)


@pytest.mark.parametrize("name", benchmark_names())
def test_benchmark_files(name):
    """Every task and metric that a published table asks for is one that lmms-eval has."""
    benchmark = load_benchmark(name)
    assert len(benchmark.cells()) == len(benchmark.tasks) * len(benchmark.settings)
    assert benchmark.cells()[0].method == "none"
    for setting in benchmark.settings:
        assert setting.published, setting.label
    for task in benchmark.tasks.values():
        if task.task == "scenes":
            continue
        (text,) = [t for t in (p.read_text() for p in TASKS.rglob(f"{task.task}.yaml")) if _names(t, task.task)]
        for metric in task.metrics:
            assert re.search(rf"metric:\s*{metric}\b", text), (task.task, metric)


def _names(text, task):
    return re.search(rf"^task\s*:\s*\"?{task}\"?\s*$", text, re.MULTILINE)


def test_the_scenes_benchmark_says_what_was_measured():
    found = committed("scenes_methods.json")
    own = {}
    for one in found["cells"]:
        options, known = dict(one["options"]), all_methods().get(one["method"])
        if known and one["positions"] == "original":
            at = options.pop("at", None)
            own[at, make_method(known, options | {"keep": one["keep"]})] = one["all"]
    for row in load_benchmark("scenes").settings:
        if row.method == "none":
            score = sum(found["dense"].values()) / len(found["dense"])
        else:
            options = {name: value for name, value in row.options.items() if name != "at"}
            score = own[row.options.get("at"), make_method(all_methods()[row.method], options)]
        assert row.published["scenes"] == pytest.approx(100 * score, abs=0.05)


def test_published_here_difference():
    benchmark = Benchmark(
        source="x",
        pretrained="scenes",
        tasks={"a": {"task": "scenes", "metrics": ["score", "colour"], "scale": 100}},
        settings=[
            {"label": "unpruned", "method": "none", "published": {"a": 199.5}},
            {"label": "half", "method": "divprune", "options": {"keep": 0.5}},
            {"label": "not run", "method": "fastv", "published": {"a": 3.0}},
        ],
    )
    found = [result("unpruned", 0.99, "none"), result("half", 0.5, keep=0.5)]
    (table,) = against(benchmark, found)
    assert table.rows == [
        ["unpruned", "199.5", "199.0", "-0.5"],
        ["half", "-", "150.0", "-"],
        ["not run", "3.0", "-", "-"],
    ]
    broken = benchmark.model_copy(update={"tasks": {"a": benchmark.tasks["a"].model_copy(update={"metrics": ["x"]})}})
    with pytest.raises(BadInput, match="reported no x, but score, colour"):
        against(broken, found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "no mapping"),
        ("a: [", "no valid YAML"),
        ("source: x\npretrained: y\ntasks: {}\nsettings: []", "wrong at tasks"),
        (
            "source: x\npretrained: y\ntasks: {gqa: {task: gqa, metrics: [m]}}\n"
            "settings: [{label: a, method: fastv, published: {gqq: 1}}]",
            "Did you mean 'gqa'",
        ),
        (
            "source: x\npretrained: y\ntasks: {gqa: {task: gqa, metrics: [m]}}\nsettings: [{label: a, method: fastw}]",
            "Did you mean 'fastv'",
        ),
    ],
)
def test_wrong_benchmark_files(tmp_path, text, message):
    (tmp_path / "b.yaml").write_text(text)
    with pytest.raises(BadInput, match=message):
        load_benchmark(tmp_path / "b.yaml")


def test_tables_compare_with_the_dense_cell_of_the_same_kind():
    (table,) = overview([result("none", 0.8, "none", 144.0), result("a", 0.6, keep=0.25)])
    assert table.rows[1][:5] == ["a", "0.6", "75.0 %", "36.0", "36.0"]
    assert table.rows[1][-2:] == ["4.00 x", "2"]
    lone = result("b", 0.6, keep=0.25)
    (table,) = overview([lone.model_copy(update={"cost": None})])
    assert table.rows == [["b", "0.6", *["-"] * 7]]


def test_the_front():
    points = [(1, 0.2), (2, 0.1), (3, 0.9), (3, 0.5), (4, 0.9)]
    assert front(points) == [(1, 0.2), (3, 0.9)]


def test_no_plot_without_measured_costs():
    with pytest.raises(BadInput, match="came out of a cache"):
        pareto([result("a", 0.5).model_copy(update={"cost": None})])


def test_committed_results_are_shown(tmp_path):
    """What the README shows of lmms-eval comes from these files."""
    found = read_all(Path(cells.__file__).parents[2] / "eval" / "results" / "lmms_eval")
    assert {r.questions for r in found} == {480}
    (tmp_path / "p.png").write_bytes(pareto(found))
    assert min(Image.open(tmp_path / "p.png").size) > 400


@needs_browser
def test_the_page_sorts(tmp_path):
    found = [result("none", 0.8, "none", 144.0), result("a", 0.6, keep=0.25), result("<b>", 0.7, tokens=72.0, keep=0.5)]
    (tmp_path / "i.html").write_text(page("Results", overview(found), found))
    with browser(tmp_path / "profile") as driver:
        driver.get((tmp_path / "i.html").as_uri())
        assert driver.find_element(By.TAG_NAME, "img").size["width"] > 300
        head = driver.find_elements(By.TAG_NAME, "th")[1]

        def labels():
            return [row.text for row in driver.find_elements(By.CSS_SELECTOR, "tbody td:first-child")]

        assert labels() == ["none", "a", "<b>"]
        head.click()
        assert labels() == ["none", "<b>", "a"]
        head.click()
        assert labels() == ["a", "<b>", "none"]
        shot(driver, "results")
        assert complaints(driver) == []
