"""Every code block of the pages runs; every notebook runs; the site is built, and what it makes by itself is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import openai
import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

import tokenprune
from eval import site
from eval.docstrings import as_list
from eval.method_page import method_page
from tests.draw import cases
from tests.served import served
from tokenprune import DivPrune, SparseVLM, methods, scenes
from tokenprune.bench.shapes import SHAPES, SMALL, configure_llama, configure_llava
from tokenprune.chat import Chat
from tokenprune.methods.base import options_of, signals_of
from tokenprune.methods.registry import all_methods
from tokenprune.plan import Plan

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FOUND = sorted((*DOCS.rglob("*.md"), *ROOT.glob("tokenprune/**/*.md")))
PAGES = ["README.md", "CONTRIBUTING.md", *(str(path.relative_to(ROOT)) for path in FOUND)]
LLAVA = "llava-hf/llava-1.5-7b-hf"  # stands for the bundled model, which is of its family
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


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder with a picture and a video, in which pages run; the checkpoint that they name is the bundled model."""
    shutil.copy(scenes.IMAGE, tmp_path / "photo.jpg")
    shutil.copy(scenes.VIDEO, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    for auto in (AutoModelForImageTextToText, AutoProcessor):
        load = auto.from_pretrained
        own = lambda name, load=load, **options: load(scenes.MODEL if name == LLAVA else name, **options)  # noqa: E731
        monkeypatch.setattr(auto, "from_pretrained", own)
    return tmp_path


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
@pytest.mark.usefixtures("folder")
def test_the_python_of_the_pages_runs(page, monkeypatch):
    """Every Python block of a page, in order, in one namespace."""
    namespace: dict = {"__name__": page}
    with serving(monkeypatch) if page == "docs/guide/serving.md" else nullcontext():
        for block in blocks(page, "python"):
            exec(compile(block, page, "exec", dont_inherit=True), namespace)


@contextmanager
def serving(monkeypatch):
    """What the page's command starts; its clients are led to where it listens."""
    with served(Chat.load("scenes"), Plan.of("divprune", keep=0.25)) as address:
        client = openai.OpenAI
        monkeypatch.setattr(openai, "OpenAI", lambda base_url, **options: client(base_url=f"{address}/v1", **options))
        yield


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
        pytest.param(page, marks=[pytest.mark.nightly] if page == "docs/evaluation.md" else [])
        for page in PAGES
        if blocks(page, "bash")
    ],
)
def test_the_commands_of_the_pages_run(command, folder, monkeypatch, packed_tasks, page):
    """tokenprune's own as they stand (benchmarks on a smaller model), lmms-eval's too; of others, that they exist."""
    small = replace(SHAPES["llama-1024"], config=configure_llava(configure_llama(128, 256, 4, 4), SMALL))
    monkeypatch.setitem(SHAPES, "llama-1024", small)
    names = {"MODEL_DIR": scenes.MODEL, "TASKS": packed_tasks}
    for name, target in names.items():
        (folder / name).symlink_to(target)
    harness = []
    for words in commands(page):
        program, *arguments = [word.replace("=MODEL_DIR", f"={scenes.MODEL}") for word in words]
        if program == "tokenprune":
            if arguments[0] in ("demo", "serve"):
                continue  # tests/test_demo.py, tests/test_serve.py
            code, out, err = command(*arguments, *SHORTER.get(arguments[0], []))
            assert code == 0, (words, err)
            if arguments[0] == "run" and "--model" not in arguments:  # of the bundled models the truth is known
                truth = {"clip.mp4": "purple ring", "receipt.png": "81.74"}
                told = next((truth[name] for name in arguments if name in truth), "x10 y4")
                assert out.count(told) == 2, (words, out)
        elif program == "lmms-eval":
            harness.append(arguments)
        elif program == "make":
            subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
        elif program == "pip":
            extra = re.fullmatch(r"tokenprune(?:\[([\w,-]+)\])?", arguments[-1])
            assert arguments[0] == "install"
            assert not extra[1] or f"\n{extra[1]} = [" in (ROOT / "pyproject.toml").read_text(), words
        elif program == "python":
            assert arguments[0] == "-m"
            assert find_spec(arguments[1]), words
        else:
            raise AssertionError(f"a command that nothing checks: {words}")
    if harness:
        started = [sys.executable, "-c", HARNESS, json.dumps(harness)]
        own = {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "home")}
        done = subprocess.run(started, env=os.environ | own, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (harness, done.stderr[-2000:])
        assert len(list(Path("out").rglob("*_samples_*.jsonl"))) == len(harness)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / target).exists(), (page, target)


def test_pages_ask_for_what_is_made():
    """Every table and part that a page names is there, and every table that is made is on a page."""
    asked = [found for page in PAGES for found in site.MARKER.findall((ROOT / page).read_text())]
    assert {name for kind, name in asked if kind == "table"} == set(site.TABLES)
    for kind, name in asked:
        if kind == "part":
            assert len(site.part(name)) > 100, name


def test_every_method_has_its_page():
    """With its paper, each option with its help, each signal, each recipe and its place in the index."""
    index = site.TABLES["methods"]()
    for name, cls in all_methods().items():
        page = method_page(cls)
        assert page.startswith(f"# {name}\n")
        assert f"[`{name}`]({name}.md)" in index
        for what in (cls.paper, *(f.metadata["help"] for f in options_of(cls)), *(f"`{n}`" for n in signals_of(cls))):
            assert what in page, (name, what)
    assert "| `sparsevlm_192` | llava-1.5-7b | compact | sparsevlm keep 300 before layer 3, " in method_page(SparseVLM)
    assert "| `divprune` | 25 % | original | 96 % | 36 | 36 | 27.1 % |" in method_page(DivPrune)


def test_entries_of_docstrings_become_a_list():
    text = "Ask.\n\nx: a number.\ny, z: others,\n    smaller ones.\n\nRaises: nothing.\nIt is: prose"
    told = "Ask.\n\n\n- `x`: a number.\n- `y, z`: others,\n    smaller ones.\n\n\n- `Raises`: nothing.\nIt is: prose"
    assert as_list(text) == told


@pytest.mark.nightly
def test_the_site_is_built_and_asks_no_other_server(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for page in tmp_path.rglob("*.html"):
        text = page.read_text()
        assert not re.search(r"<(script|img|link|iframe|source)\b[^>]*(src|href)=.?(https?:)?//", text), page
        assert "<!-- table" not in text
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"(url\(|@import )\W*(https?:)?//", style.read_text()), style
    text = (tmp_path / "reference.html").read_text()
    for name in tokenprune.__all__:
        if name not in methods.classes():
            assert f"{name}</span>" in text, name
            assert getattr(tokenprune, name).__doc__, name


def test_the_files_of_the_walk_are_there():
    text = (ROOT / "docs/walk.md").read_text()
    named = {path for path in re.findall(r"`([\w./]+\.py)`", text) if "<" not in path}
    assert len(named) > 20
    assert not [path for path in named if not (ROOT / "tokenprune" / path).exists()]
