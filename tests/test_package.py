"""The README is what the results say; the layers keep their order. The wheel: `test_plugin.py`."""

from __future__ import annotations

import ast
from pathlib import Path

from eval import readme

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "errors": set(),
    "version": set(),
    "scenes": set(),
    "images": {"errors"},
    "video": {"errors"},
    "frames": {"errors", "video"},
    "html": set(),
    "chat": {"errors", "families", "frames", "scenes", "video"},
    "core": {"errors", "core"},
    "methods": {"errors", "core", "methods"},
    "families": {"errors", "families"},
    "attach": {"errors", "core", "methods", "families", "attach"},
    "overlay": {"errors", "families", "attach"},
    "explain": {"core", "families", "attach", "api", "chat", "html", "overlay", "video", "explain"},
    "shelf": {"errors"},
    "recipes": {"errors", "methods", "shelf"},
    "api": {"errors", "core", "methods", "attach", "recipes"},
    "demo": {
        *("errors", "core", "methods", "attach", "recipes", "api", "scenes", "chat", "images", "video", "overlay"),
        *("explain", "cli", "demo"),
    },
    "search": {"errors", "core", "methods", "attach", "api"},
    "retrieval": {"errors", "core", "methods", "api"},
    "bench": {"errors", "version", "families", "attach", "api", "chat", "images", "bench"},
    "integrations": {"errors", "families", "attach", "recipes", "api", "chat", "images", "video", "integrations"},
    "evaluation": {"errors", "methods", "shelf", "scenes", "bench", "html", "integrations", "evaluation"},
    "cli": {
        *("errors", "methods", "attach", "recipes", "api", "scenes", "chat", "images", "overlay", "video", "bench"),
        *("evaluation", "explain", "demo", "cli"),
    },
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
                assert part in ("core", "methods", "attach"), f"{path.name} imports {name}"
            if part in ("core", "methods"):
                assert top not in ("transformers", "PIL", "typer"), f"{path.name} imports {name}"


def test_kernels_is_the_lowest_layer_and_not_a_package():
    for path in (ROOT / "kernels").rglob("*.py"):
        ours = {name for name in imports_of(path) if name.partition(".")[0] == "tokenprune"}
        assert ours <= {"tokenprune.errors"}, path.name
    assert not list((ROOT / "kernels").rglob("__init__.py"))


def test_the_readme_is_up_to_date():
    text = readme.README.read_text()
    assert readme.render(text) == text, "README.md is stale: run `make readme`"
    assert readme.full_page() == readme.FULL.read_text(), "scenes_methods.md is stale: run `make readme`"


def test_the_tree_in_the_readme_names_every_file():
    text = readme.README.read_text()
    for path in [path for part in ("tokenprune", "kernels", "eval") for path in (ROOT / part).rglob("*.py")]:
        if path.name != "__init__.py":
            assert path.name in text, f"{path.name} is missing from the README's tree"
