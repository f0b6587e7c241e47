"""`python -m tests.killed MOMENT RANK ...`: the command line, whose process RANK kills itself at a moment of the second
cell, as a machine that is switched off does."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tokenprune import cli
from tokenprune.chat import Chat
from tokenprune.evaluation import cells, harness

# What is called when the moment has come, and whether it is done before the end comes.
MOMENTS = {
    "between cells": (harness, "evaluate", False),
    "within a cell": (Chat, "batch", True),
    "behind its answers": (cells, "write_samples", True),
    "before its result": (cells, "write", False),
    "while it is written": (Path, "replace", False),
}


def main(moment: str, rank: str) -> None:
    if os.environ.get("RANK", "0") == rank:
        strike(moment)
    cli.main()


def strike(moment: str) -> None:
    """Arm it: the process ends at the second cell's call of what the moment names."""
    owner, name, done = MOMENTS[moment]
    evaluate, called, begun = harness.evaluate, getattr(owner, name), []

    def ends(*args, **kwargs):
        if len(begun) == 2:
            if done:
                called(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        return called(*args, **kwargs)

    def counted(*args, **kwargs):
        begun.append(args)
        return (ends if owner is harness else evaluate)(*args, **kwargs)

    harness.evaluate = counted
    if owner is not harness:
        setattr(owner, name, ends)


if __name__ == "__main__":
    moment, rank = sys.argv[1:3]
    del sys.argv[1:3]
    main(moment, rank)
