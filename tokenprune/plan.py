"""What to prune with, as one thing: made from everything that people pass for it, put on a model, written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tokenprune.checking.verify import asks_to_verify, verify_first_prompt
from tokenprune.engine.refuse import check_runs, unwrap
from tokenprune.engine.run import Run
from tokenprune.engine.setup import Policies
from tokenprune.engine.support import obstacle
from tokenprune.errors import BadInput, TokenpruneError
from tokenprune.families.base import Family
from tokenprune.families.registry import family_named, family_of
from tokenprune.methods.base import Method, options_of
from tokenprune.methods.place import Decode, EncoderPlace, Layer, Place, in_encoder, place_of
from tokenprune.methods.registry import all_classes
from tokenprune.methods.stage import Stage
from tokenprune.recipes import Recipe, find_named

LAYERS = 32  # of the decoder where no model says it


@dataclass(frozen=True)
class Plan:
    """What to prune with. `Plan.of` makes one of a name, a method, stages or a recipe; `Plan()` prunes nothing.

    what: a method, stages, a recipe as it was read, or None for nothing.
    at: the layer (or "decode", "pixels", "vision:8") where a single method stands; None: where its schedule does.
    positions: `original` or `compact` ids; the default is the recipe's, or `original`.
    turns: `refuse` or `accept` a later question on a cache that was pruned for an earlier one.
    scope: in what the budgets of a single method count, `part` or `item`; None: the method's own.
    images: `each` by itself, or the `frames` of a video.
    name: what it was asked for by, a method's or a recipe's name or file; empty where it was none.
    """

    what: Method | Recipe | tuple[Stage, ...] | None = None
    at: Any = None
    positions: str = ""
    turns: str = "refuse"
    scope: str | None = None
    images: str = "each"
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.at, Layer):
            object.__setattr__(self, "at", self.at.at)
        place = place_of(self.at) if in_encoder(self.at) else None
        if isinstance(place, EncoderPlace):
            object.__setattr__(self, "at", place.written)
        if not self.positions:
            own = self.what.positions if isinstance(self.what, Recipe) else "original"
            object.__setattr__(self, "positions", own)
        _ = self.policies  # raises for those that there are not
        placed = self.at is not None or self.scope is not None
        if placed and isinstance(self.what, Recipe):
            raise BadInput("at= and scope= cannot be changed beside a recipe. Edit a copy of its file.")
        if placed and not isinstance(self.what, Method):
            raise BadInput("at= and scope= go with a single method; a Stage says where it stands.")
        if self.at is not None:
            self.stages_in(LAYERS)

    @classmethod
    def of(
        cls,
        method: Planned,
        *,
        at: int | str | Place | None = None,
        positions: str | None = None,
        turns: str | None = None,
        scope: str | None = None,
        images: str | None = None,
        **options: Any,
    ) -> Plan:
        """The plan that the arguments of `prune` (which see) ask for; files are read once, here.

        Raises `BadInput` for arguments that do not go together, before there is any model.
        """
        asked: dict[str, Any] = {"at": at, "positions": positions, "turns": turns, "scope": scope, "images": images}
        asked = {name: value for name, value in asked.items() if value is not None}
        if isinstance(method, Plan):
            if asked or options:
                raise BadInput(f"{', '.join([*asked, *options])}: a Plan says it all. Make another with Plan.of(...).")
            return method
        if isinstance(method, type):
            name = getattr(method, "name", "divprune")
            raise BadInput(
                f"{method.__name__} is a class. Write {method.__name__}(keep=0.1), or its name: {name!r}, keep=0.1."
            )
        if isinstance(method, (str, Path)):
            return cls(find_named(method, options), name=str(method), **asked)
        if options:
            names = ", ".join(options)
            raise BadInput(f"Options ({names}) go with a method's name; give the others to the method itself.")
        if isinstance(method, (Method, Recipe)):
            return cls(method, **asked)
        if not isinstance(method, (Stage, Sequence)):
            raise BadInput(f"{method!r} is no method. Give a name, a method, a Stage, a list of Stage, or a recipe.")
        stages = (method,) if isinstance(method, Stage) else tuple(method)
        wrong = [stage for stage in stages if not isinstance(stage, Stage)]
        if wrong:
            raise BadInput(f"{wrong[0]!r} is not a Stage. Write Stage(at, method).")
        return cls(tuple(stage for stage in stages if isinstance(stage, Stage)), **asked)

    @classmethod
    def with_budget(cls, keep: Any, name: str | Path, /, **asked: Any) -> Plan:
        """The plan of a name, with this `keep` unless `asked` has one; a recipe has budgets of its own."""
        return cls.of(name, **({"keep": keep} if str(name) in all_classes() else {}) | asked)

    @property
    def policies(self) -> Policies:
        """How the engine goes about it; raises `BadInput` where there is no such policy."""
        return Policies(self.positions, self.turns, self.images)

    @property
    def methods(self) -> list[Method]:
        """The methods that it was made of."""
        return [self.what] if isinstance(self.what, Method) else [stage.method for stage in self._fixed()]

    def stages(self, model: PreTrainedModel) -> list[Stage]:
        """The stages on this model, wrapped or not: a method without a place stands where its schedule puts it."""
        model = unwrap(model)
        return self.stages_in(len(family_of(model).language_model(model).layers))

    def stages_in(self, layers: int) -> list[Stage]:
        """The same in any model of so many decoder layers."""
        if not isinstance(self.what, Method):
            return self._fixed()
        places = self.what.schedule(layers) if self.at is None else [(self.at, self.what)]
        return [Stage(place, one, self.scope or "") for place, one in places]

    def attach(self, model: PreTrainedModel, verify: str = "auto") -> Run | None:
        """Prune the model as `prune` (which see) does; None where nothing is to be pruned."""
        if self.what is None:
            return None
        stages = self.stages(model)
        verifies = asks_to_verify(verify, stages, family_of(unwrap(model)))
        run = Run(model, stages, self.policies)
        if verifies:
            verify_first_prompt(run)
        return run

    def check(self, model: PreTrainedModel) -> None:
        """Raise what `attach` raises for a model that cannot run it, without touching the model."""
        if self.what is not None:
            inner = unwrap(model)
            check_runs(inner, family_of(inner), self.stages(inner))

    def describe(self) -> dict[str, Any]:
        """All that is asked for, as JSON holds it: each stage with every option, and the policies that are no defaults.

        A method without a place stands where its own schedule puts it. Names, comments and published figures are not in
        it: what says the same is the same. Empty where nothing is pruned.
        """
        if self.what is None:
            return {}
        stages: list[tuple[Any, int | None, str | None, Method]]
        stages = [(_written(s), s.start, s.scope, s.method) for s in self._fixed()]
        if isinstance(self.what, Method):
            at, start = (self.at.at, self.at.start) if isinstance(self.at, Decode) else (self.at, None)
            stages = [(at, start, self.scope, self.what)]
        found = [
            {"at": at, "start": start, "scope": scope, "method": method.name, "options": asdict(method)}
            for at, start, scope, method in stages
        ]
        policies = {name: getattr(self, name) for name in ("turns", "images") if getattr(self, name) != DEFAULTS[name]}
        return json.loads(json.dumps({"stages": found, "positions": self.positions} | policies))

    def python(self) -> str:
        """The call that does the same to a model of one's own, as a line of Python."""
        if self.what is None:
            return "# nothing is pruned"
        own = self.what.positions if isinstance(self.what, Recipe) else "original"
        given = [f"{name}={getattr(self, name)!r}" for name in ("at", "scope") if getattr(self, name) is not None]
        given += [f"positions={self.positions!r}"] * (self.positions != own or (not self.name and own != "original"))
        given += [
            f"{name}={getattr(self, name)!r}" for name in ("turns", "images") if getattr(self, name) != DEFAULTS[name]
        ]
        if self.name:
            options = _options(self.what, always=("keep",)) if isinstance(self.what, Method) else []
            name = self.what.name if isinstance(self.what, Method) else self.name
            return f"run = tokenprune.prune({', '.join(['model', repr(name), *options, *given])})"
        what = _call(self.what) if isinstance(self.what, Method) else f"[{', '.join(map(_stage, self._fixed()))}]"
        return f"run = tokenprune.prune({', '.join(['model', what, *given])})"

    def _fixed(self) -> list[Stage]:
        """The stages whose places do not depend on the model."""
        if isinstance(self.what, Recipe):
            return self.what.to_stages()
        return list(self.what) if isinstance(self.what, tuple) else []


Planned = str | Path | Method | Stage | Recipe | Sequence[Stage] | Plan
DEFAULTS = {one.name: one.default for one in fields(Plan)}


def supports(model: PreTrainedModel | Family | str, method: Planned, **asked: Any) -> str | None:
    """Why a model cannot be pruned so, as a sentence; None where it can.

    model: a model; or a family, its name (`Qwen2.5-VL`) or a model type (`qwen2_5_vl`), of which some models have to be
        able to. A model's answer is that of `prune` on it, layers and the way it was loaded included.
    method, asked: as for `prune`.

    Raises `BadInput` for a method or an argument that is wrong on any model.
    """
    plan = Plan.of(method, **asked)
    try:
        if not isinstance(model, (str, Family)):
            plan.check(model)
            return None
        family = family_named(model) if isinstance(model, str) else model
    except TokenpruneError as error:
        return str(error)
    found = (obstacle(family, stage.method, stage.place) for stage in plan.stages_in(LAYERS))
    return next((str(one) for one in found if one is not None), None)


def _stage(stage: Stage) -> str:
    """The constructor of a stage."""
    scope = [f"scope={stage.scope!r}"] if stage.scope not in ("", stage.method.scope) else []
    start = [f"start={stage.start}"] if stage.start is not None else []
    return f"Stage({', '.join([repr(_written(stage)), _call(stage.method), *scope, *start])})"


def _written(stage: Stage) -> int | str:
    """Its place as people write it."""
    return stage.place.written if isinstance(stage.place, EncoderPlace) else stage.at


def _call(method: Method) -> str:
    """The constructor of a method, with what differs from its defaults."""
    return f"{type(method).__name__}({', '.join(_options(method))})"


def _options(method: Method, always: Sequence[str] = ()) -> list[str]:
    values = {one.name: (getattr(method, one.name), one.default) for one in options_of(type(method))}
    return [f"{name}={value!r}" for name, (value, own) in values.items() if value != own or name in always]
