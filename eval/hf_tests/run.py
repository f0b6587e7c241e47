"""Runs transformers' own model tests on pruned models, from a checkout of it: `make hf-tests HF=path/to/transformers`.

`python -m eval.hf_tests.run path --families llava,qwen2_vl --modes none,a` runs a part, which is shown and not written.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # before transformers looks

import contextlib
import json
import platform
import re
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Annotated

import torch

from eval.hf_tests.vision import declare_operators

OPERATORS = declare_operators()

import pytest  # noqa: E402
import transformers  # noqa: E402
import typer  # noqa: E402

from eval.hf_tests.plugin import MODES, Plugin, model_types  # noqa: E402
from eval.hf_tests.verdict import LIST, PAGE, RESULT, Listed, Verdict, judge, page  # noqa: E402
from eval.results import write  # noqa: E402

LOG = Path("runs/hf_tests.log")
OUTCOMES = LOG.with_suffix(".json")  # of every test, with its errors


def test_files(checkout: Path, families: list[str]) -> list[Path]:
    """The test file of each model type, by its name."""
    files = [checkout / f"tests/models/{name}/test_modeling_{name}.py" for name in families]
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        raise typer.BadParameter(f"No checkout of transformers with its tests: {', '.join(missing)} missing.")
    return files


def version_of(checkout: Path) -> str:
    """The version that a checkout says it is."""
    found = re.search(r'^\s*version="([^"]+)"', (checkout / "setup.py").read_text(), re.MULTILINE)
    return found[1] if found else "unknown"


def record(verdict: Verdict, tests: str, everything: bool, note: str) -> dict:
    """What is committed."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {
        "versions": versions | {"tests": tests},
        "note": f" ({note})" if note else "",
        "selection": "whole" if everything else "short",
        "date": date.today().isoformat(),
        **{name: getattr(verdict, name) for name in ("rows", "excused", "unexpected", "stale", "baseline")},
    }


def main(
    checkout: Annotated[Path, typer.Argument(help="A checkout of transformers, of the version that is installed.")],
    everything: Annotated[bool, typer.Option("--all", help="Every test, not the short list alone.")] = False,
    families: Annotated[str, typer.Option(help="Folders of tests, with commas; default: all.")] = "",
    modes: Annotated[str, typer.Option(help="Of the modes.")] = ",".join(MODES),
    note: Annotated[str, typer.Option(help="What to say of the checkout beside its version.")] = "",
    expected: Annotated[Path, typer.Option(help="The list of expected failures.")] = LIST,
) -> None:
    """Run the tests, compare with the list; exits with 1 if anything is not as expected."""
    torch.set_num_threads(1)
    checkout = checkout.resolve()
    listed = Listed.load(expected)
    folders = families.split(",") if families else sorted([*model_types(), *listed.also])
    letters = modes.split(",")
    complete = not families and letters == list(MODES)
    tests = version_of(checkout)
    if tests != transformers.__version__:
        typer.echo(f"The checkout is of {tests}, transformers {transformers.__version__} is installed.")
    terminal = sys.stdout

    def say(text: str) -> None:
        print(text, file=terminal, flush=True)
        OUTCOMES.write_text(json.dumps(plugin.results, indent=1, default=asdict))

    plugin = Plugin(model_types(), letters, listed, everything, say)
    arguments = ["-q", "--disable-warnings", "--tb=native", "-o", "log_cli=0", "-p", "no:cacheprovider"]
    sys.path.insert(0, str(checkout))  # its `tests`, not ours
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("w") as log, contextlib.redirect_stdout(log):
        files = [str(file) for file in test_files(checkout, folders)]
        code = pytest.main([*arguments, "--rootdir", str(checkout), *files], plugins=[plugin])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest did not run through: {code!r}. See {LOG}.")
    verdict = judge(plugin.results, listed, complete)
    for line in verdict.lines():
        typer.echo(line)
    if complete:
        write(RESULT, record(verdict, tests, everything, note))
        PAGE.write_text(page({letter: mode.text for letter, mode in MODES.items()}))
    typer.echo(f"{'As expected' if verdict.good else 'Not as expected'}: {len(plugin.results)} model types. Log: {LOG}")
    raise typer.Exit(not verdict.good)


if __name__ == "__main__":
    typer.run(main)
