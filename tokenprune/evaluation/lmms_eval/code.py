"""The versions of what an answer was made by: of the package, of the engine, and of a method's algorithm.

The version of an algorithm is a digest of the source files that it comes from. So none is forgotten when a file is
edited, and one that says the same in other words is another.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tokenprune.families.registry import all_families
from tokenprune.methods.base import Method
from tokenprune.version import VERSION

ROOT = Path(__file__).parents[2]
METHODS = "tokenprune.methods."
# What an answer passes through, whichever the method.
ENGINE = (
    *("*.py", "core/*.py", "engine/*.py", "families/*.py", "media/*.py", "signals/*.py"),
    "evaluation/lmms_eval/*.py",
)


def code_of(methods: Iterable[Method]) -> dict[str, str]:
    """The version of the package, and digests of the engine and of each method's algorithm, by name."""
    found = {method.name: algorithm(type(method)) for method in methods}
    return {"tokenprune": VERSION, "engine": engine()} | dict(sorted(found.items()))


@cache
def engine() -> str:
    """A digest of what prepares inputs, prunes and generates: the package and its kernels but for methods and pages."""
    own = {path for pattern in ENGINE for path in ROOT.glob(pattern)}
    fused = set(_file_of("tokenprune_kernels.dispatch").parent.rglob("*.py"))
    foreign = {path for family in all_families().values() for path in _foreign(type(family))}
    return _digest(own | fused | foreign)


@cache
def algorithm(method: type[Method]) -> str:
    """A digest of a method's file and of those of `tokenprune.methods` that it imports; of a method of another package,
    of all of that package."""
    homes = {cls.__module__ for cls in method.__mro__ if issubclass(cls, Method)}
    own = {_file_of(name) for home in homes if home.startswith(METHODS) for name in _imports_of(home)}
    return _digest(own | _foreign(method))


def _file_of(module: str) -> Path:
    """The file of a module of this package, loaded or not."""
    spec = find_spec(module)
    assert spec is not None, f"{module} belongs to this package"
    assert spec.origin is not None, f"{module} is a file"
    return Path(spec.origin)


def _imports_of(module: str) -> set[str]:
    """A module of `tokenprune.methods` and those that it imports, directly or not."""
    found, waiting = set(), {module}
    while waiting:
        found.add(one := waiting.pop())
        tree = ast.parse(_file_of(one).read_bytes())
        names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
        waiting |= {name for name in names if name.startswith(METHODS)} - found
    return found


def _foreign(cls: type) -> set[Path]:
    """The files of the packages outside this one that a class and its bases come from."""
    found = set()
    for module in {base.__module__ for base in cls.__mro__}:
        top = module.partition(".")[0]
        if top in sys.stdlib_module_names or top == "tokenprune":
            continue
        found |= {Path(file) for name in (top, module) if (file := sys.modules[name].__file__)}
    packages = [path.parent for path in found if path.name == "__init__.py"]
    return found | {path for package in packages for path in package.rglob("*.py")}


def _digest(paths: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for path in sorted(paths):
        content = path.read_bytes()
        whole.update(f"{path.name} {len(content)}\n".encode() + content)
    return whole.hexdigest()[:16]
