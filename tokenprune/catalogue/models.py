"""Which model types are pruned, tried on tiny models: `models.json`, which `python -m eval.census` writes."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from typing import Any

from tokenprune.families.registry import all_families


@lru_cache(maxsize=1)
def read_models() -> dict[str, Any]:
    """The census. types: for each model type (some with a word for what is special about a checkpoint) its outcome and
    why; apart: types whose visual features are no rows of a prompt, and why."""
    return json.loads((files("tokenprune") / "catalogue" / "models.json").read_text())


def model_rows() -> list[tuple[str, str, str]]:
    """Model type, what it is pruned by, and what came of it, for every type; those with a family file first."""
    served = {kind: family.name for family in all_families().values() for kind in family.model_types}
    rows = []
    for key, found in read_models()["types"].items():
        family = served.get(key.partition(" ")[0])
        exact = f"exact ({found['largest']:.0e})" if found["outcome"] == "exact" else found["outcome"]
        by = family or ("conventions" if found["outcome"] == "exact" else "-")
        rows.append((key, by, f"{exact}: {found['why']}" if found["why"] else exact))
    rows += [(key, "-", f"no visual rows: {why}") for key, why in read_models()["apart"].items()]
    return sorted(rows, key=lambda row: (row[1] == "-", row[1] == "conventions", row[0]))
