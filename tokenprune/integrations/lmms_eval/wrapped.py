"""`--model tokenprune_<id>`: lmms-eval's own models, with their prompts and preprocessing, and pruning around them.

The names here, `chat_<id>` and `simple_<id>`, are made when lmms-eval asks for them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, unwrap_generation_output
from lmms_eval.api.model import lmms
from lmms_eval.models import get_model
from loguru import logger

from tokenprune.integrations.lmms_eval import WRAPPED
from tokenprune.integrations.lmms_eval.meter import Cost, Measured, Meter
from tokenprune.integrations.lmms_eval.settings import NONE, Pruning

PREFIX = "prune_"


class Pruned:
    """In front of a model class of lmms-eval: takes the pruning out of its arguments, prunes while it generates.

    Arguments that the class does not know are `method` (default `none`) and the options of `tokenprune.prune`. An
    option that both know (`temperature` of token_transforming, where the class samples) is written `prune_<name>`.
    """

    def __init__(self, method: str = NONE, **arguments: Any) -> None:
        own = arguments_of(type(self).__mro__[2])
        asked = {name: value for name, value in arguments.items() if name not in own}
        self.pruning = Pruning.of(method, {name.removeprefix(PREFIX): value for name, value in asked.items()})
        super().__init__(**{name: value for name, value in arguments.items() if name in own})

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The class's own answers, each with what its prompt cost."""
        requests = [_copied(request) for request in requests]  # some models write into their settings
        run = self.pruning.attach(self.model)
        documents = Documents(self.task_dict)
        self.task_dict = documents
        try:
            with Meter(self.model, run) as meter:
                documents.meter = meter
                answers = super().generate_until(requests)
                documents.settle()
        finally:
            self.task_dict = documents.tasks
            if run is not None:
                run.remove()
        found = []
        for request, answer in zip(requests, answers, strict=True):
            text, counts = unwrap_generation_output(answer)
            given = {} if counts is None else vars(counts)
            found.append(GenerationResult(text, Measured(**given, cost=documents.cost(request))))
        return found


class Documents:
    """The harness's documents, which every model looks up in the order of its batch: that tells the rows apart."""

    def __init__(self, tasks: dict[str, Any]) -> None:
        self.tasks = tasks
        self.meter: Meter | None = None
        self._asked: list[tuple] = []
        self._costs: dict[tuple, Cost] = {}

    def __getitem__(self, task: str) -> _Splits:
        return _Splits(self, task)

    def look_up(self, task: str, split: str, number: Any) -> Any:
        """A document, remembered as one of the batch that is being put together."""
        if self.meter.ready:
            self.settle()
        self._asked.append((task, split, number))
        return self.tasks[task][split][number]

    def settle(self) -> None:
        """Give the prompts that were read their documents."""
        asked, self._asked = self._asked, []
        prompts = self.meter.take()
        rows = [cost for prompt in prompts for cost in prompt]
        names = asked if len(asked) == len(rows) else list(dict.fromkeys(asked))
        if len(names) != len(rows):
            logger.warning(f"{len(rows)} rows were read for {len(names)} documents: their cost is not logged.")
            return
        self._costs.update(zip(names, rows, strict=True))

    def cost(self, request: Instance) -> Cost | None:
        """What this request's prompt cost, where that is known."""
        return self._costs.get((*request.args[-2:], request.args[-3]))


class _Splits:
    def __init__(self, documents: Documents, task: str, split: str | None = None) -> None:
        self._documents, self._task, self._split = documents, task, split

    def __getitem__(self, key: Any) -> Any:
        if self._split is None:
            return _Splits(self._documents, self._task, key)
        return self._documents.look_up(self._task, self._split, key)


def arguments_of(cls: type) -> set[str]:
    """Named arguments of a class, those of its bases included where it hands on the rest."""
    found: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        found |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} - {"self"}
        if base is lmms or not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _copied(request: Instance) -> Instance:
    own = copy.copy(request)
    own.arguments = tuple(copy.deepcopy(a) if isinstance(a, dict) else a for a in request.args)
    return own


def _names() -> Iterator[str]:
    for name, chat in WRAPPED.items():
        yield f"simple_{name}"
        if chat:
            yield f"chat_{name}"


def __getattr__(name: str) -> type[lmms]:
    if name not in _names():
        raise AttributeError(name)
    kind, _, model = name.partition("_")
    cls = get_model(model, force_simple=kind == "simple")
    made = type(f"Tokenprune{cls.__name__}", (Pruned, cls), {"__module__": __name__, "is_simple": cls.is_simple})
    globals()[name] = made
    return made
