"""A method is one file. Two are put into a copy of the repository, where nothing else is touched: they are everywhere,
and what the tests ask of every method is asked of them too."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ASKED = '''
from dataclasses import dataclass
from typing import ClassVar

from tokenprune.core.selection import Selection, ranks
from tokenprune.methods.base import Method, View, option
from tokenprune.methods.origin import Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class Asked(Method):
    """The tokens that the text after them attends to most, in a form that only the device knows the size of."""

    name: ClassVar[str] = "asked"
    paper: ClassVar[str] = "arXiv 0000.00001"
    year: ClassVar[int] = 2026
    kind: ClassVar[str] = "text-guided"
    origin: ClassVar[Origin] = Origin("paper")
    default_at: ClassVar[int] = 2
    waits: ClassVar[str] = "it counts what it marked"

    heads: str = option("mean", "what counts of several heads", choices=("mean", "max"))

    @property
    def needs(self):
        return (Need("text_attention"),)

    def select(self, view: View) -> Selection:
        paid = view["text_attention"].float().mean(-2)
        scores = paid.mean(1) if self.heads == "mean" else paid.amax(1)
        return Selection.of(ranks(scores) < self.budget(view))
'''
# Tests of every method by its name, and those that go through all of them or through what follows from them.
SELECTED = (
    "(dropped_in or spread or asked or keeps_exactly_k or name_of_a_signal or stages_by_name or schedules_keep)"
    " and not held_by_a_test"  # which asks for vectors of published code
)
SELECTED += " or readme_is or stub_is or ledger_is or name_of_the_package"
MODULES = (
    "dropped_in",
    "test_select",
    "test_syncs",
    "test_methods",
    "test_package",
    "test_explain",
    "test_faithfulness",
)


def test_a_method_is_one_file(tmp_path):
    for name in ("tokenprune", "tests", "eval", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    spread = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    for name, text in {"spread": spread, "asked": ASKED}.items():
        (tmp_path / "tokenprune" / "methods" / f"{name}.py").write_text(text)
    files = [f"tests/{name}.py" for name in MODULES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rp", "-n0", "--all", "-p", "no:cacheprovider", "-k", SELECTED, *files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    for file in files:
        assert f"PASSED {file}::" in done.stdout, file
