"""The README is what the results say; the layers keep their order. The wheel: `test_plugin.py`."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import tokenprune
from eval import readme
from tokenprune import BadInput, methods
from tokenprune.methods.registry import all_classes, all_methods

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "errors": set(),
    "version": set(),
    "scenes": set(),
    "media": {"errors", "media"},
    "chat": {"errors", "families", "media", "scenes"},
    "core": {"errors", "core"},
    "signals": {"errors", "core", "signals"},
    "methods": {"errors", "core", "signals", "methods"},
    "families": {"errors", "families"},
    "engine": {"errors", "core", "signals", "methods", "families", "engine"},
    "explain": {"errors", "core", "families", "engine", "api", "plan", "chat", "media", "explain"},
    "recipes": {"errors", "methods", "recipes"},
    "plan": {"errors", "methods", "families", "engine", "recipes", "checking"},
    "catalogue": {"errors", "signals", "methods", "families", "engine", "recipes", "plan", "catalogue"},
    "checking": {"errors", "version", "methods", "families", "engine", "plan", "checking"},
    "api": {"errors", "core", "signals", "methods", "engine", "checking", "plan"},
    "demo": {
        *("errors", "core", "methods", "engine", "recipes", "api", "scenes", "chat", "media"),
        *("explain", "catalogue", "cli", "demo", "plan"),
    },
    "search": {"errors", "core", "signals", "methods", "engine", "api"},
    "retrieval": {"errors", "core", "methods", "api"},
    "bench": {"errors", "version", "families", "engine", "api", "plan", "chat", "media", "bench"},
    "evaluation": {
        *("errors", "version", "methods", "families", "engine", "plan", "chat", "media", "recipes", "scenes", "bench"),
        *("explain", "evaluation"),
    },
    "cli": {
        *("errors", "signals", "methods", "engine", "recipes", "api", "scenes", "chat", "media", "bench"),
        *("checking", "evaluation", "explain", "catalogue", "demo", "plan", "serving", "cli"),
    },
    "serving": {"errors", "methods", "engine", "chat", "media", "plan", "serving"},
}


def imports_of(path):
    """Top-level names of what a file imports, tokenprune's own as `tokenprune.part`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" if node.module == "tokenprune" else node.module for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        else:
            continue
        yield from names


def test_imports_only_point_down():
    for path in (ROOT / "tokenprune").rglob("*.py"):
        part = path.relative_to(ROOT / "tokenprune").with_suffix("").parts[0]
        if part == "__init__":
            continue
        for name in imports_of(path):
            top, _, rest = name.partition(".")
            if top == "tokenprune":
                assert rest.split(".")[0] in ALLOWED[part], f"{path.name} imports {name}"
            if top == "tokenprune_kernels":
                assert part in ("core", "signals", "methods", "engine"), f"{path.name} imports {name}"
            if part in ("core", "signals", "methods") and path.name != "taps.py":
                assert top not in ("transformers", "PIL", "typer"), f"{path.name} imports {name}"


def test_no_imports_go_in_circles():
    """Those inside functions and under TYPE_CHECKING are looked at too."""
    files = {path.relative_to(ROOT).with_suffix(""): path for path in (ROOT / "tokenprune").rglob("*.py")}
    modules = {".".join(name.parts).removesuffix(".__init__"): path for name, path in files.items()}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        if module == "tokenprune":  # it names what is imported when it is asked for
            continue
        graph[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                graph[module] |= {name if name in modules else node.module for name in names}
    TopologicalSorter({module: own & modules.keys() for module, own in graph.items()}).prepare()


def test_kernels_is_the_lowest_layer_and_not_a_package():
    for path in (ROOT / "kernels").rglob("*.py"):
        ours = {name for name in imports_of(path) if name.partition(".")[0] == "tokenprune"}
        assert ours <= {"tokenprune.errors"}, path.name
    assert not list((ROOT / "kernels").rglob("__init__.py"))


def test_the_readme_is_up_to_date():
    text = readme.README.read_text()
    assert readme.render(text) == text, "README.md is stale: run `make readme`"


def test_the_readme_is_short():
    text = readme.README.read_text()
    assert text.count("\n") <= 150
    assert len(text.encode()) <= 10_000


def test_the_figures_of_the_list_are_up_to_date():
    assert readme.measured() == readme.MEASURED.read_text(), "measured.json is stale: run `make readme`"


def test_the_stub_is_up_to_date():
    """But for methods that came after it."""
    lines, fresh = readme.STUB.read_text().splitlines(), readme.stub().splitlines()
    late = [line for line in fresh if line.startswith("from .methods.") and line not in lines]
    assert [line for line in fresh if line not in late] == lines, "__init__.pyi is stale: run `make readme`"


def test_every_method_is_a_name_of_the_package():
    """What is read in the text of `methods/` is what is there once it is imported."""
    own = [cls for cls in all_classes().values() if cls.__module__.startswith("tokenprune.")]
    assert sorted((cls.__name__, cls.__module__) for cls in own) == sorted(methods.classes().items())
    for cls in own:
        assert getattr(tokenprune, cls.__name__) is cls
        assert cls.__name__ in dir(tokenprune)


def test_importing_the_package_and_listing_its_names_loads_nothing():
    names: dict = {}
    exec("from tokenprune import *", names)
    assert set(tokenprune.__all__) < set(names)
    code = "import sys, tokenprune; assert dir(tokenprune); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "numpy", "tokenprune.api", "tokenprune.methods.divprune"} & set(loaded)
    with pytest.raises(AttributeError, match="module 'tokenprune' has no attribute 'nothing'"):
        tokenprune.nothing  # noqa: B018


def test_a_name_is_taken_once(monkeypatch, tmp_path):
    """A method that was copied and keeps the name of the first would hide it."""
    (tmp_path / "copy.py").write_text((ROOT / "tokenprune" / "methods" / "evs.py").read_text())
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    with pytest.raises(BadInput, match=r"^tokenprune\.methods\.(copy|evs) repeats the method name 'evs'\.$"):
        all_methods.__wrapped__()
    sys.modules.pop("tokenprune.methods.copy")
