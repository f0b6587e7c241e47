"""What to prune with, from everything that people pass for it: stages, and the position policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tokenprune.engine.run import language_layers
from tokenprune.errors import BadInput
from tokenprune.methods.base import Method
from tokenprune.methods.stage import Stage, staged
from tokenprune.recipes import Recipe, named

Planned = str | Path | Method | Stage | Recipe | Sequence[Stage]


def planned(
    model: PreTrainedModel,
    method: Planned,
    *,
    at: int | str | None = None,
    positions: str | None = None,
    scope: str | None = None,
    **options: Any,
) -> tuple[list[Stage], str]:
    """The stages and the position policy that the arguments of `prune` (which see) ask for on this model.

    Raises `BadInput` for arguments that do not go together.
    """
    if isinstance(method, type):
        name = getattr(method, "name", "divprune")
        raise BadInput(
            f"{method.__name__} is a class. Write {method.__name__}(keep=0.1), or its name: {name!r}, keep=0.1."
        )
    if isinstance(method, (str, Path)):
        method = named(method, options)
    elif options:
        raise BadInput(f"Options ({', '.join(options)}) go with a method's name; give the others to the method itself.")
    if isinstance(method, Recipe):
        if at is not None or scope is not None:
            raise BadInput("at= and scope= cannot be changed beside a recipe. Edit a copy of its file.")
        return method.to_stages(), positions or method.positions
    if isinstance(method, Method):
        places = method.schedule(len(language_layers(model))) if at is None else [(at, method)]
        return [staged(place, one, scope or "") for place, one in places], positions or "original"
    if not isinstance(method, (Stage, Sequence)):
        raise BadInput(f"{method!r} is no method. Give a name, a method, a Stage, a list of Stage, or a recipe.")
    stages = [method] if isinstance(method, Stage) else list(method)
    wrong = [s for s in stages if not isinstance(s, Stage)]
    if wrong:
        raise BadInput(f"{wrong[0]!r} is not a Stage. Write Stage(at, method).")
    if at is not None or scope is not None:
        raise BadInput("at= and scope= go with a single method; a Stage says where it stands.")
    return stages, positions or "original"
