"""Every code block of the pages runs; every notebook runs; the reference names everything that is public."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

import tokenprune
from tests.draw import cases
from tokenprune import scenes
from tokenprune.bench.workload import SHAPES, SMALL, configure_llama, configure_llava

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "tokenprune" / "docs"
PAGES = ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("tokenprune/**/*.md"))]
LANGUAGES = ("python", "bash", "toml")
HARNESS = """
import json, runpy, sys
for words in json.loads(sys.argv[1]):
    sys.argv = ["lmms-eval", *words]
    try:
        runpy.run_module("lmms_eval", run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise
"""
SHORTER = {"bench": ["--rounds", "1", "--new-tokens", "1"], "run": ["--repeat", "1"]}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands(page):
    """Lines of the bash blocks, without their comments."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def test_every_block_is_of_a_language_that_is_run():
    for page in PAGES:
        for block in blocks(page, "toml"):
            entry = re.search(r'^\[project\.entry-points\."(tokenprune\.\w+)"\]$', block, re.MULTILINE)
            assert entry, "of TOML only entry points are shown; tests/test_plugin.py installs a package with some"
        fences = re.findall(r"^```(\w*)$", (ROOT / page).read_text(), re.MULTILINE)
        assert set(fences[::2]) <= {*LANGUAGES, ""}, page


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_of_the_pages_runs(monkeypatch, page):
    """Every Python block of a page, in order, in one namespace."""
    monkeypatch.chdir(ROOT)
    namespace: dict = {"__name__": page}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec", dont_inherit=True), namespace)


@cases(
    "notebook", [pytest.param(path, id=path.stem) for path in sorted(DOCS.glob("notebooks/*.ipynb"))], lambda _: None
)
def test_the_notebooks_run(monkeypatch, notebook):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    found = json.loads(notebook.read_text())
    namespace: dict = {"__name__": notebook.stem}
    for cell in found["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "commit notebooks without their outputs"
            exec(compile("".join(cell["source"]), notebook.name, "exec", dont_inherit=True), namespace)


def test_examples_that_get_an_answer_hold_it_to_the_truth():
    cells = [json.loads(path.read_text())["cells"] for path in DOCS.glob("notebooks/*.ipynb")]
    code = ["".join(cell["source"]) for found in cells for cell in found if cell["cell_type"] == "code"]
    code += [block for page in PAGES for block in blocks(page, "python")]
    asking = [block for block in code if re.search(r"print\(.*\b(ask|answer|decode)\(|= .*\b(answer|decode)\(", block)]
    assert len(asking) >= 4
    for block in asking:
        assert "assert " in block, block


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.nightly] if page == "tokenprune/docs/evaluation.md" else [])
        for page in PAGES
        if blocks(page, "bash")
    ],
)
def test_the_commands_of_the_pages_run(command, monkeypatch, packed_tasks, tmp_path, page):
    """tokenprune's own as they stand (benchmarks on a smaller model), lmms-eval's too; of others, that they exist."""
    small = replace(SHAPES["llama-1024"], config=configure_llava(configure_llama(128, 256, 4, 4), SMALL))
    monkeypatch.setitem(SHAPES, "llama-1024", small)
    names = {"MODEL_DIR": scenes.MODEL, "TASKS": packed_tasks}
    for name, target in names.items():
        (tmp_path / name).symlink_to(target)
    shutil.copy(scenes.IMAGE, tmp_path / "photo.jpg")
    shutil.copy(scenes.VIDEO, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    harness = []
    for words in commands(page):
        program, *arguments = [word.replace("=MODEL_DIR", f"={scenes.MODEL}") for word in words]
        if program == "tokenprune":
            if arguments[0] == "demo":
                continue  # tests/test_demo.py
            code, out, err = command(*arguments, *SHORTER.get(arguments[0], []))
            assert code == 0, (words, err)
            if arguments[0] == "run" and "--model" not in arguments:  # of the bundled models the truth is known
                assert out.count("purple ring" if "--video" in arguments else "x10 y4") == 2, (words, out)
        elif program == "lmms-eval":
            harness.append(arguments)
        elif program == "make":
            subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
        elif program == "pip":
            extra = re.fullmatch(r"tokenprune\[([\w,-]+)\]", arguments[-1])
            assert arguments[0] == "install"
            assert f"\n{extra[1]} = [" in (ROOT / "pyproject.toml").read_text(), words
        elif program == "python":
            assert arguments[0] == "-m"
            assert find_spec(arguments[1]), words
        else:
            raise AssertionError(f"a command that nothing checks: {words}")
    if harness:
        started = [sys.executable, "-c", HARNESS, json.dumps(harness)]
        own = {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(started, env=os.environ | own, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (harness, done.stderr[-2000:])
        assert len(list(Path("out").rglob("*_samples_*.jsonl"))) == len(harness)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / target).exists(), (page, target)


@pytest.mark.nightly
def test_the_reference_names_everything_public(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pdoc", "--output-directory", tmp_path, "tokenprune"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "tokenprune.html").read_text()
    for name in tokenprune.__all__:
        assert f'id="{name}"' in text, name
        assert getattr(tokenprune, name).__doc__, name
