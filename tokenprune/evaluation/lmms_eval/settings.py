"""The plan in `--model_args`: which method, where, with what options; and what tells two of them apart."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tokenprune.errors import BadInput
from tokenprune.evaluation.lmms_eval.code import code_of
from tokenprune.plan import Plan

NONE = "none"
WHERE = ("at", "positions", "turns", "scope", "images")


def plan_of(method: str, options: dict[str, Any]) -> Plan:
    """The plan of a method or recipe with the options of `tokenprune.prune`; `none` is the unpruned baseline.

    Checked before any model is loaded; raises `BadInput` for what `tokenprune.prune` would refuse by name.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if method != NONE:
        return Plan.of(method, **options)
    if options:
        raise BadInput(f"method={NONE} takes no {', '.join(options)}. Name a method, or leave them out.")
    return Plan()


def digest(plan: Plan) -> str:
    """Differs wherever the answers of a model could: by what the plan says and the versions of what does it."""
    return hashlib.sha256(json.dumps([plan.describe(), code_of(plan.methods)], sort_keys=True).encode()).hexdigest()
