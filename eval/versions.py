"""A sample of the laws on several versions of transformers, each in an environment of its own: `make test-versions`.

`python -m eval.versions --python python3.12 --only 5.24.0` runs one of them with another Python. Environments are made
as `make run` makes them, from the lock as it would be with that version; they stay in `.venvs/`.
"""

from __future__ import annotations

import json
import os
import subprocess
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from xml.etree import ElementTree

import typer

from eval.results import RESULTS, read
from tokenprune.evaluation import markdown

ROOT = Path(__file__).parent.parent
VENVS = Path(".venvs")
RESULT = RESULTS / "versions.json"
VERSIONS = "5.17.0,5.20.2,5.23.0,5.24.0"
SAMPLE = [f"tests/test_{name}.py" for name in ("versions", "encoder_stages", "published_inside", "segments", "spared")]
KEY = ("python", "torch", "transformers")
ASK = "import platform as p, torch, transformers as t; print(p.python_version(), torch.__version__, t.__version__)"


def call(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository, by default one that must not fail."""
    own = os.environ | {"MAKEFLAGS": ""}  # not those of the `make test-versions` around this
    return subprocess.run(command, cwd=ROOT, env=own, text=True, **{"check": True} | options)


def count(report: Path) -> dict[str, int]:
    """Tests that passed, failed and were skipped, by pytest's XML report."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    total, failures, errors, skipped = (int(suite.get(n)) for n in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


def measure(python: str, version: str, tests: list[str]) -> dict[str, Any]:
    """`make run` and tests in an environment with this version; the row of the table."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    venv = VENVS / f"{call(python, '-c', code, stdout=subprocess.PIPE).stdout.strip()}-{version}"
    lock = venv.with_name(f"{version}.txt")
    call("make", ".venvs/uv/bin/uv")
    call(VENVS / "uv/bin/python", "-m", "eval.lock", f"transformers=={version}", "--out", lock)
    make = ("make", f"PYTHON={python}", f"VENV={venv}", f"LOCK={lock}")
    call(*make, venv / ".run")
    ran = call(*make, "run", check=False).returncode == 0
    call(*make, venv / ".dev")
    installed = call(venv / "bin/python", "-c", ASK, stdout=subprocess.PIPE).stdout.split()
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = (venv / "bin/python", "-m", "pytest", "-q", "-n", "auto", f"--junitxml={report}", *tests)
        code = call(*command, check=False).returncode
        if code not in (0, 1):  # 1: some failed
            raise RuntimeError(f"pytest did not run through: exit code {code}.")
        counts = count(report)
    row = dict(zip(KEY, installed, strict=True)) | {"make_run": ran, "tests": " ".join(tests)}
    return row | counts | {"date": date.today().isoformat()}


def merge_rows(rows: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows with a new one, in place of that of the same versions."""
    by_key = {tuple(row[k] for k in KEY): row for row in (*rows, new)}
    return [by_key[key] for key in sorted(by_key, key=lambda key: [numbers(part) for part in key])]


def numbers(version: str) -> list[int]:
    """A version as what it is ordered by."""
    return [int(part) for part in version.partition("+")[0].split(".")]


def table() -> str:
    """The committed rows in Markdown."""
    rows = []
    for row in read(RESULT.name)["rows"]:
        counts = ", ".join(f"{row[name]} {name}" for name in ("passed", "failed", "skipped") if row[name])
        rows.append([*(row[k] for k in KEY), "works" if row["make_run"] else "fails", f"`{row['tests']}`", counts])
        rows[-1].append(row["date"])
    return markdown.table(["Python", "torch", "transformers", "`make run`", "tests", "result", "date"], rows)


def main(
    tests: Annotated[list[str], typer.Argument(help="What pytest runs instead of the sample, after --.")] = SAMPLE,
    python: Annotated[str, typer.Option(help="The Python to make environments with.")] = "python3",
    only: Annotated[str, typer.Option(help="Versions of transformers.")] = VERSIONS,
    out: Annotated[Path, typer.Option(help="Result file; rows of other versions stay.")] = RESULT,
) -> None:
    """Run every version and write its row; exits with 1 if anything failed."""
    good = True
    for version in only.split(","):
        row = measure(python, version, tests)
        typer.echo(json.dumps(row))
        old = json.loads(out.read_text())["rows"] if out.exists() else []
        out.write_text(json.dumps({"rows": merge_rows(old, row)}, indent=1) + "\n")
        good &= row["make_run"] and not row["failed"]
    raise typer.Exit(not good)


if __name__ == "__main__":
    typer.run(main)
