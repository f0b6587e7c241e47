"""The pruning in `--model_args`: which method, where, with what options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from tokenprune.api import prune
from tokenprune.engine.run import Run
from tokenprune.errors import BadInput
from tokenprune.recipes import named

NONE = "none"
WHERE = ("at", "positions", "turns", "scope", "images")


@dataclass(frozen=True)
class Pruning:
    """A method or recipe with the options of `tokenprune.prune`; `none` is the unpruned baseline."""

    method: str
    options: dict[str, Any]

    @classmethod
    def of(cls, method: str, options: dict[str, Any]) -> Pruning:
        """Checked before any model is loaded; raises `BadInput` for what `tokenprune.prune` would refuse by name."""
        options = {name: value for name, value in options.items() if value is not None}
        if method == NONE:
            if options:
                raise BadInput(f"method={NONE} takes no {', '.join(options)}. Name a method, or leave them out.")
        else:
            named(method, {name: value for name, value in options.items() if name not in WHERE})
        return cls(method, options)

    def attach(self, model: PreTrainedModel) -> Run | None:
        """Prune the model; None for the baseline."""
        return None if self.method == NONE else prune(model, self.method, **self.options)
