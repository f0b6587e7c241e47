"""Methods on Scenes through lmms-eval: `python -m eval.tasks.grid`, after `python -m eval.tasks.pack --count 60`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from eval.results import RESULTS

OUT = RESULTS / "lmms_eval"
TASKS = Path("runs/tasks")
METHODS = "divprune,todre,fopru,visionzip,feather,fastv,random,uniform"


def main() -> None:
    """The published table of the bundled model, then methods at three budgets; finished cells are kept."""
    where = ["--include-path", TASKS, "--out", OUT]
    grid = ["--model", "scenes", "--tasks", "scenes", "--methods", METHODS, "--keep", "0.5,0.25,0.1", "--batch", "8"]
    for asked in (["--benchmark", "scenes"], grid):
        subprocess.run([sys.executable, "-m", "tokenprune.cli", "eval", *asked, *where], check=True)


if __name__ == "__main__":
    main()
