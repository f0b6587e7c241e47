"""Where a measurement comes from, and its file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tokenprune.errors import BadInput
from tokenprune.version import VERSION


def provenance() -> dict[str, Any]:
    """Versions, device, threads and, in a checkout, the commit (with + where files differ from it)."""
    found: dict[str, Any] = {"tokenprune": VERSION, "torch": str(torch.__version__)}  # with its build, as +cpu
    for name in ("transformers", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else f"CPU ({platform.machine()})"
    found |= {"python": platform.python_version(), "device": device, "threads": torch.get_num_threads()}
    return found | {"commit": commit()}


def commit() -> str | None:
    """The commit of the checkout that this package runs from; None for an installed one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):  # no git here
        return None


def text(result: dict[str, Any]) -> str:
    """A result as JSON with where it comes from."""
    return json.dumps(result | {"versions": provenance()}, indent=1) + "\n"


def write(path: Path, result: dict[str, Any]) -> None:
    """Write that to a file; raises `BadInput` where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.write_text(text(result))
        unfinished.replace(path)  # a run that is stopped leaves no half file
    except OSError as error:
        raise BadInput(f"Cannot write the result to {path}: {error}") from error
