"""Result files: the only source of figures in the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenprune.bench.record import write

__all__ = ["RESULTS", "read", "write"]
RESULTS = Path(__file__).parent


def read(name: str) -> dict[str, Any]:
    """A committed result by file name."""
    return json.loads((RESULTS / name).read_text())
