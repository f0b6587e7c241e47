"""What a cell is known by: everything that its recipe says and that it is done by, and nothing else."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass

import pytest

from tests.tiny import FAMILIES
from tokenprune import BadInput
from tokenprune.evaluation.cells import Cell, Result, read, write
from tokenprune.evaluation.grid import Benchmark, grid
from tokenprune.evaluation.harness import run_all
from tokenprune.evaluation.lmms_eval import code
from tokenprune.evaluation.lmms_eval.settings import digest, plan_of
from tokenprune.evaluation.tables import against, overview
from tokenprune.methods import registry
from tokenprune.methods.base import option
from tokenprune.methods.divprune import DivPrune

RECIPE = """\
model: llava-1.5-7b
positions: original
stages:
  - {at: 0, method: divprune, keep: 0.5}
  - {at: 4, method: fastv, keep: 0.5}
published: {source: a paper, gqa: 1.0}
"""
SAME = {
    "as it was": RECIPE,
    "a comment": f"# why\n{RECIPE}# more\n",
    "white space": RECIPE.replace(": ", ":   ").replace("\n", "\n\n").replace("  - ", "    - "),
    "another order of names": "\n".join(
        [
            "published: {gqa: 1.0, source: a paper}",
            "stages: [{keep: 0.5, method: divprune, at: 0}, {keep: 0.5, method: fastv, at: 4}]",
            "model: llava-1.5-7b",
        ]
    ),
    "another order of stages": RECIPE.replace("at: 0", "at: 9")
    .replace("at: 4", "at: 0")
    .replace("at: 9", "at: 4")
    .replace("divprune", "other")
    .replace("fastv", "divprune")
    .replace("other", "fastv"),
    "a default written out": RECIPE.replace("divprune,", "divprune, rounding: nearest, scope: part,"),
    "Windows": RECIPE.replace("\n", "\r\n"),
    "what it was compared with": RECIPE.replace("gqa: 1.0", "gqa: 2.0"),
}
OTHER = {
    "a budget": RECIPE.replace("divprune, keep: 0.5", "divprune, keep: 0.25"),
    "a count instead of a fraction": RECIPE.replace("divprune, keep: 0.5", "divprune, keep: 1"),
    "a layer": RECIPE.replace("at: 4", "at: 5"),
    "positions": RECIPE.replace("original", "compact"),
    "a method": RECIPE.replace("divprune", "random"),
    "an option": RECIPE.replace("divprune,", "divprune, rounding: up,"),
    "a scope": RECIPE.replace("divprune,", "divprune, scope: item,"),
    "a stage less": RECIPE.replace("  - {at: 4, method: fastv, keep: 0.5}\n", ""),
    "a stage more": RECIPE.replace("stages:\n", "stages:\n  - {at: 7, method: random}\n"),
    "decoding": RECIPE.replace("stages:\n", "stages:\n  - {at: decode, method: fastocr}\n"),
    "decoding from another layer": RECIPE.replace("stages:\n", "stages:\n  - {at: decode, method: fastocr, from: 3}\n"),
}


@pytest.fixture
def name_of(tmp_path):
    """The file of the cell of a recipe that is written in place of the one before."""
    path = tmp_path / "mine.yaml"

    def name(text):
        path.write_bytes(text.encode())
        return grid("scenes", ["scenes"], [str(path)], [])[1].name

    return name


def test_a_cell_is_what_its_recipe_says(name_of):
    first = name_of(RECIPE)
    assert {case: name_of(text) for case, text in SAME.items()} == dict.fromkeys(SAME, first)
    names = {case: name_of(text) for case, text in OTHER.items()}
    assert len({first, *names.values()}) == len(OTHER) + 1


def test_another_file_of_the_same_name(tmp_path, monkeypatch):
    """A relative path, from two folders."""
    names = []
    for folder, keep in (("a", 0.5), ("b", 0.25)):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        (tmp_path / folder / "mine.yaml").write_text(RECIPE.replace("0.5", str(keep)))
        names.append(grid("scenes", ["scenes"], ["mine.yaml"], [])[1].name)
    assert len(set(names)) == 2


def test_the_keys_of_methods():
    """Every way of asking that changes what is done, and the version of the code that does it."""
    plain = plan_of("divprune", {"keep": 0.5})
    ways = [{"keep": 0.25}, {"at": 2}, {"positions": "compact"}, {"scope": "item"}, {"turns": "accept"}]
    ways += [{"images": "frames"}, {"rounding": "up"}]
    digests = {digest(plan_of("divprune", {"keep": 0.5} | way)) for way in ways}
    assert len(digests | {digest(plain), digest(plan_of("none", {}))}) == len(ways) + 2
    (stage,) = plain.describe()["stages"]
    assert stage["options"] == {"keep": 0.5, "rounding": "nearest", "of": "current"}
    assert plain.describe() == json.loads(json.dumps(plain.describe()))


@dataclass(frozen=True)
class Rounds(DivPrune):
    rounding: str = option("up", "another default")


@pytest.fixture
def replaced(monkeypatch):
    """Another class in the place of `divprune`."""

    def replace(cls):
        known = registry.all_classes() | {"divprune": cls}
        for module in ("tokenprune.recipes.recipe", "tokenprune.evaluation.grid"):
            monkeypatch.setattr(sys.modules[module], "all_classes", lambda: known)
        monkeypatch.setattr("tokenprune.recipes.recipe.method_class", known.__getitem__)

    return replace


def test_a_default_that_changes(name_of, replaced):
    before = name_of(RECIPE), grid("m", ["t"], ["divprune"], [0.5])[1].name
    replaced(Rounds)
    after = name_of(RECIPE), grid("m", ["t"], ["divprune"], [0.5])[1].name
    assert not {*before} & {*after}


METHOD = """\
from dataclasses import dataclass
from my_package.helper import order
from tokenprune.methods.divprune import DivPrune


@dataclass(frozen=True)
class Mine(DivPrune):
    name = "mine"
"""


def test_the_version_of_an_algorithm(tmp_path, monkeypatch):
    """It changes with its own file, with what that imports of its package, and with the method that it builds on."""
    package = tmp_path / "my_package"
    package.mkdir()
    for name, text in (("__init__", ""), ("helper", "def order(): return 1\n"), ("mine", METHOD)):
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("my_package.mine").Mine
    version = code.algorithm.__wrapped__
    first = version(mine)
    assert version(mine) == first
    assert first != version(DivPrune)
    (package / "helper.py").write_text("def order(): return 2\n")
    second = version(mine)
    (package / "mine.py").write_text(METHOD + "    # more\n")
    assert len({first, second, version(mine)}) == 3
    files = []
    monkeypatch.setattr(code, "_digest", lambda paths: files.extend(p.name for p in paths))
    version(mine)
    assert {"divprune.py", "base.py", "mine.py", "helper.py", "__init__.py"} <= set(files)
    assert "fastv.py" not in files
    for name in ("my_package", "my_package.mine", "my_package.helper"):
        monkeypatch.delitem(sys.modules, name)


def test_the_version_of_the_engine(monkeypatch):
    """All that answers pass through, and no method: another one is added without running everything again."""
    files = set()
    monkeypatch.setattr(code, "_digest", lambda paths: files.update("/".join(p.parts[-2:]) for p in paths))
    code.engine.__wrapped__()
    wanted = {"tokenprune/api.py", "media/video.py", "engine/forward.py", "core/selection.py", "families/llava.py"}
    assert wanted | {"kernels/dispatch.py", "fused/greedy.py", "lmms_eval/model.py"} <= files
    assert not {file for file in files if file.startswith(("methods/", "cli/", "demo/"))}


def test_versions_are_in_the_key():
    cell = Cell.of("fastv", {"keep": 0.5}, label="a", task="t", pretrained="m")
    assert cell.code.keys() == {"tokenprune", "engine", "fastv"}
    names = {cell.model_copy(update={"code": cell.code | {key: "other"}}).name for key in cell.code}
    assert len(names | {cell.name}) == 4
    assert Cell.of("none", {}, label="a", task="t", pretrained="m").code.keys() == {"tokenprune", "engine"}


def test_a_recipe_is_read_once(tmp_path, tiny_models):
    """What is pruned with is what was checked and what the key says, whatever becomes of the file."""
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    plan = plan_of(str(path), {"positions": "compact"})
    path.write_text("nothing")
    with plan.attach(tiny_models(FAMILIES["llava"])) as run:
        assert [stage.at for stage in run.stages] == [0, 4]
        assert run.positions == "compact"
    assert plan.describe()["positions"] == "compact"


def test_a_recipe_that_is_edited_while_the_grid_runs(packed_tasks, tmp_path):
    """The result would be kept under what the file said before."""
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    cells = grid("scenes", ["scenes"], [str(path)], [], limit=1)[1:]

    def edit(done, cell):
        path.write_text(RECIPE.replace("0.5", "0.25"))

    with pytest.raises(BadInput, match=r"mine.yaml was edited after the grid had begun"):
        run_all(cells, tmp_path / "out", [packed_tasks], "cpu", edit)
    assert not list(tmp_path.glob("out/*"))


def result(cell, score):
    return Result(cell=cell, scores={"score": score}, questions=1, cost=None, seconds=1.0)


def test_results_of_both(tmp_path):
    """Two contents of a file, side by side in one folder, are told apart; each stands beside its own engine's dense."""
    path, rows = tmp_path / "mine.yaml", []
    table = Benchmark(
        source="x",
        pretrained="scenes",
        tasks={"a": {"task": "scenes", "metrics": ["score"], "scale": 100}},
        settings=[{"label": "mine", "method": str(path), "published": {"a": 50}}],
    )
    for keep, score in ((0.5, 0.6), (0.25, 0.4)):
        path.write_text(RECIPE.replace("0.5", str(keep)))
        (cell,) = table.cells()
        write(tmp_path / "out", result(cell, score))
        assert read(tmp_path / "out" / f"{cell.name}.json").cell == cell
        rows.append(result(cell, score))
    (shown,) = overview(rows)
    assert [row[0] for row in shown.rows] == [f"mine ({row.cell.key})" for row in rows]
    assert against(table, rows)[0].rows == [["mine", "50.0", "40.0", "-10.0"]]
    dense = [Cell.of("none", {}, label="none", task="scenes", pretrained="scenes")]
    dense.append(dense[0].model_copy(update={"code": dense[0].code | {"engine": "other"}}))
    (shown,) = overview([result(dense[1], 0.1), result(dense[0], 0.8), rows[1]])
    assert shown.rows[2][2] == "50.0 %"
