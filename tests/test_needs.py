"""`tokenprune eval` starts, or says in one line which package is wrong, before it loads a model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.draw import cases
from tokenprune import BadInput
from tokenprune.evaluation import needs
from tokenprune.evaluation.harness import import_functions, task_manager
from tokenprune.evaluation.needs import naming, requirements

ROOT = Path(__file__).parent.parent
ASKED = ("eval", "--model", "scenes", "--tasks", "scenes")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
NEEDED = [Requirement(text) for name in ("lmms-eval", "harness") for text in EXTRAS[name]]
PACKAGES = [one for one in NEEDED if one.name != "tokenprune"]


def test_all_that_the_extra_asks_for_is_looked_at():
    assert {(one.name, str(one.specifier)) for one in requirements("lmms-eval")} == {
        (one.name, str(one.specifier)) for one in PACKAGES
    }
    assert {"lmms-eval", "datasets", "accelerate", "filelock"} <= {one.name for one in PACKAGES}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda one: one.name)
def test_a_wrong_version_is_named(command, monkeypatch, tmp_path, package):
    """As another package leaves it behind: its metadata says so."""
    wrong = {"filelock": "4.0.1", "lmms-eval": "0.8.0"}.get(package.name, "0.1")
    folder = tmp_path / f"{package.name.replace('-', '_')}-{wrong}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {wrong}\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, out, err = command(*ASKED)
    said = " ".join(err.split())
    assert (code, out) == (2, "")
    assert f"needs {package.name}{package.specifier}, but {package.name} {wrong} is installed" in said
    assert "pip install 'tokenprune[lmms-eval]'" in said


@pytest.mark.parametrize("package", ["lmms-eval", "jsonlines", "tokenprune"])
def test_a_missing_package_is_named(command, monkeypatch, package):
    def found(name):
        if name == package:
            raise needs.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(needs, "version", found)
    monkeypatch.setattr(needs, "requires", lambda name: found(name) and [str(one) for one in _declared()])
    code, out, err = command(*ASKED)
    assert (code, out) == (2, "")
    assert f"{package}, which is not installed" in err or "tokenprune is not installed" in err


def _declared():
    return [f'{one.name}{one.specifier}; extra == "lmms-eval"' for one in PACKAGES]


HIDDEN = "import sys; sys.modules[{0!r}] = None\n"
BROKEN = {
    "hidden": ("jsonlines", None, "jsonlines"),
    "hidden deep down": ("pytablewriter", None, "[Pp]ytablewriter"),
    "lmms-eval itself": ("lmms_eval", None, "lmms[-_]eval"),
    "not what it says": ("filelock", "__version__ = '4.0'\n", r"filelock"),
    "an error of its own": ("sacrebleu", "raise RuntimeError('built for another torch')\n", "built for another torch"),
    "a syntax of another Python": ("evaluate", "print 'x'\n", "invalid syntax|Missing parentheses"),
}


@cases("case", list(BROKEN), lambda case: "package")
def test_a_package_that_cannot_be_imported_is_named(tmp_path, case):
    """In a process of its own, as a user starts it: exit code 2, one line, and no model."""
    name, text, message = BROKEN[case]
    if text is None:
        (tmp_path / "sitecustomize.py").write_text(HIDDEN.format(name))
    else:
        (tmp_path / f"{name}.py").write_text(text)
    program = [sys.executable, "-m", "tokenprune.cli", *ASKED, "--include-path", "nowhere", "--out", tmp_path / "out"]
    own = {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(program, env=os.environ | own, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert len(said) == 1
    assert re.search(message, said[0]), said
    assert "pip install 'tokenprune[lmms-eval]'" in said[0]
    assert "Loading" not in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()


def test_the_packages_of_an_error_are_named(monkeypatch, tmp_path):
    """The deepest cause counts, and the packages that it comes up in."""
    (tmp_path / "broken.py").write_text("try:\n import nowhere\nexcept ImportError as e:\n raise ValueError() from e\n")
    (tmp_path / "rough.py").write_text("import yaml\nyaml.safe_load('a: [')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInput, match=r"cannot use it: No module named 'nowhere' \(no nowhere\)"), naming("it"):
        import_module("broken")
    with pytest.raises(BadInput, match=rf"cannot use it: .* \(PyYAML {version('pyyaml')}\)"), naming("it"):
        import_module("rough")
    with pytest.raises(BadInput, match=r"^Unknown as it is\.$"), naming("it"):
        raise BadInput("Unknown as it is.")


TASK = """\
task: mine
dataset_path: parquet
output_type: generate_until
doc_to_text: !function {module}.text
"""


@pytest.mark.parametrize("asked", ["mine", "theirs", "ours"])
def test_what_a_task_needs_is_named_before_a_model_is_loaded(tmp_path, asked):
    """lmms-eval imports the functions of tasks when the model is there already. By its name, its group, its tag."""
    (tmp_path / "utils.py").write_text("import nowhere\n")
    (tmp_path / "mine.yaml").write_text(TASK.format(module="utils") + "tag: theirs\n")
    (tmp_path / "group.yaml").write_text("group: ours\ntask:\n  - mine\n  - {task: another, include: x}\n")
    with pytest.raises(BadInput, match=r"cannot use the task mine: No module named 'nowhere'"):
        task_manager([asked], [tmp_path])


def test_tasks_that_are_right_are_let_through(packed_tasks):
    import_functions(task_manager(["scenes", "scenes_video"], [packed_tasks]), ["scenes", "scenes_video"])


@pytest.mark.parametrize("through", ["llava_hf", "tokenprune_nothing"])
def test_only_models_that_are_pruned(command, packed_tasks, tmp_path, through):
    where = ("--include-path", packed_tasks, "--out", tmp_path / "out")
    code, _, err = command(*ASKED, "--through", through, *where)
    assert code == 2
    assert f"Unknown model of lmms-eval that tokenprune prunes '{through}'" in " ".join(err.split())


def test_arguments_are_looked_at_first(command, monkeypatch):
    monkeypatch.setattr(needs, "check_packages", lambda: pytest.fail("looked at packages"))
    code, _, err = command("eval", "--model", "scenes")
    assert (code, "Give --benchmark" in " ".join(err.split())) == (2, True)
