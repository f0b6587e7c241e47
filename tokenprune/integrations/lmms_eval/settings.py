"""The pruning in `--model_args`: which method, where, with what options."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from tokenprune.api import prune
from tokenprune.engine.run import Run
from tokenprune.errors import BadInput
from tokenprune.integrations.lmms_eval.code import code_of
from tokenprune.methods.base import Method
from tokenprune.recipes import Recipe, named

NONE = "none"
WHERE = ("at", "positions", "turns", "scope", "images")


@dataclass(frozen=True)
class Pruning:
    """A method or recipe with the options of `tokenprune.prune`; `none` is the unpruned baseline.

    what: the method that is built, or the recipe that is read, once: a file that is edited later changes nothing.
    """

    method: str
    options: dict[str, Any]
    what: Method | Recipe | None = None

    @classmethod
    def of(cls, method: str, options: dict[str, Any]) -> Pruning:
        """Checked before any model is loaded; raises `BadInput` for what `tokenprune.prune` would refuse by name."""
        options = {name: value for name, value in options.items() if value is not None}
        if method != NONE:
            what = named(method, {name: value for name, value in options.items() if name not in WHERE})
            return cls(method, options, what)
        if options:
            raise BadInput(f"method={NONE} takes no {', '.join(options)}. Name a method, or leave them out.")
        return cls(method, options)

    def attach(self, model: PreTrainedModel) -> Run | None:
        """Prune the model; None for the baseline."""
        return None if self.what is None else prune(model, self.what, **self._where())

    def says(self) -> dict[str, Any]:
        """All that is asked for, as JSON holds it: each stage with every option, and the position policy. A method
        without `at` stands where its own schedule puts it. Names, comments and published figures are not in it."""
        if self.what is None:
            return {}
        where = self._where()
        if isinstance(self.what, Recipe):
            policy = self.what.positions
            stages = [(s.at, s.start, s.scope, s.method) for s in self.what.to_stages()]
        else:
            policy, stages = "original", [(where.pop("at", None), None, where.pop("scope", None), self.what)]
        found = [
            {"at": at, "start": start, "scope": scope, "method": method.name, "options": asdict(method)}
            for at, start, scope, method in stages
        ]
        return json.loads(json.dumps({"stages": found, "positions": policy} | where))

    def code(self) -> dict[str, str]:
        """The versions of what it is done by."""
        if isinstance(self.what, Recipe):
            return code_of(stage.method for stage in self.what.to_stages())
        return code_of([] if self.what is None else [self.what])

    @property
    def digest(self) -> str:
        """Differs wherever the answers of a model could."""
        return hashlib.sha256(json.dumps([self.says(), self.code()], sort_keys=True).encode()).hexdigest()

    def _where(self) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name in WHERE}
