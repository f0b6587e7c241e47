"""Result files: the only source of figures in the README."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from tokenprune.version import VERSION

RESULTS = Path(__file__).parent


def read(name: str) -> dict[str, Any]:
    """A committed result by file name."""
    return json.loads((RESULTS / name).read_text())


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result with the versions it was measured with."""
    versions = {
        "tokenprune": VERSION,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result | {"versions": versions}, indent=1) + "\n")
