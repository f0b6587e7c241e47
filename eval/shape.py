"""How large and how tangled the package is, now and before the engine was taken apart: `python -m eval.shape`.

Lines, the largest file, files above 400 lines, cyclomatic complexity (ruff's C901) and circles of imports, those under
TYPE_CHECKING and inside functions included.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import networkx
import typer

from eval.results import RESULTS, write

ROOT = Path(__file__).parent.parent
BEFORE = "7562f2c"  # as it was when the engine was to be taken apart
LONG, COMPLEX = 400, 13  # lines of a file; what ruff allows a function in `pyproject.toml`


def count_lines(path: Path) -> int:
    """Of a text file."""
    return len(path.read_text().splitlines())


def complexities(folder: Path) -> list[int]:
    """Cyclomatic complexity of every function that has any branch."""
    command = ["ruff", "check", "--isolated", "--select", "C901", "--output-format", "json", "--exit-zero"]
    command += ["--config", "lint.mccabe.max-complexity=1", str(folder)]
    found = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=True).stdout
    return [int(one["message"].rpartition("(")[2].split(" > ")[0]) for one in json.loads(found)]


def imports(root: Path) -> Iterator[tuple[str, str]]:
    """Module and module that it imports, of the package in `root`."""
    names = {}
    for path in sorted((root / "tokenprune").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    for name, path in names.items():
        for node in ast.walk(ast.parse(path.read_text())):
            asked = []
            if isinstance(node, ast.Import):
                asked = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                asked = [one if one in names else node.module for one in whole]
            yield from ((name, one) for one in asked if one in names and one != name)


def measure(root: Path) -> dict[str, Any]:
    """The figures of one checkout."""
    package = root / "tokenprune"
    files = {str(path.relative_to(package)): count_lines(path) for path in sorted(package.rglob("*.py"))}
    engine = {name: n for name, n in files.items() if name.startswith(("engine/", "attach/"))}
    found = complexities(package)
    graph = networkx.DiGraph(imports(root))
    circles = [sorted(one) for one in networkx.strongly_connected_components(graph) if len(one) > 1]
    return {
        "files": len(files),
        "lines": sum(files.values()),
        "largest_file": max(files.values()),
        "files_above_400": sum(n > LONG for n in files.values()),
        "engine_files": len(engine),
        "engine_lines": sum(engine.values()),
        "largest_engine_file": max(engine.values()),
        "worst_complexity": max(found),
        "functions_above_13": sum(n > COMPLEX for n in found),
        "circles": sorted(circles),
        "readme_lines": count_lines(root / "README.md"),
    }


def main(
    before: Annotated[str, typer.Option(help="The commit to hold it against.")] = BEFORE,
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS / "shape.json",
) -> None:
    """Measure a commit of before and what is checked out."""
    archive = subprocess.run(["git", "archive", before], cwd=ROOT, capture_output=True, check=True).stdout
    commit = subprocess.run(["git", "rev-parse", before], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        found = {"before": measure(Path(folder)) | {"commit": commit.strip()}, "now": measure(ROOT)}
    write(out, found)
    typer.echo(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
