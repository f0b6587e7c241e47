"""`--model tokenprune_<id>`: lmms-eval's own models, with their prompts and preprocessing, and pruning around them.

The names here, `chat_<id>` and `simple_<id>`, are made when lmms-eval asks for them.
"""

from __future__ import annotations

import copy
import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, unwrap_generation_output
from lmms_eval.api.model import lmms
from lmms_eval.models import get_model
from loguru import logger

from tokenprune.engine.run import Run
from tokenprune.errors import Unsupported
from tokenprune.evaluation.lmms_eval import WRAPPED
from tokenprune.evaluation.lmms_eval.meter import Measured, Meter, RowCost
from tokenprune.evaluation.lmms_eval.responses import key_responses
from tokenprune.evaluation.lmms_eval.settings import NONE, plan_of

PREFIX = "prune_"

key_responses()


class Pruned(lmms):
    """In front of a model class of lmms-eval: takes the pruning out of its arguments, prunes while it generates.

    Arguments that the class does not know are `method` (default `none`) and the options of `tokenprune.prune`. An
    option that both know (`temperature` of token_transforming, where the class samples) is written `prune_<name>`.
    """

    def __init__(self, method: str = NONE, **arguments: Any) -> None:
        own = arguments_of(type(self).__mro__[2])
        asked = {name: value for name, value in arguments.items() if name not in own}
        self.plan = plan_of(method, {name.removeprefix(PREFIX): value for name, value in asked.items()})
        super().__init__(**{name: value for name, value in arguments.items() if name in own})

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The class's own answers, each with what its prompt cost."""
        requests = [_copy(request) for request in requests]  # some models write into their settings
        documents = Documents(self.task_dict)
        self.task_dict: Any = documents
        try:
            with self._prune() as run, Meter(self.model, run) as meter:
                answers = super().generate_until(requests)
                costs = documents.costs(meter.take())
        finally:
            self.task_dict = documents.tasks
        if meter.failed:  # some models write an error to their log and go on with an empty answer
            raise Unsupported(f"{meter.failed} prompts failed inside {type(self).__name__}; its log says why.")
        found = []
        for request, answer in zip(requests, answers, strict=True):
            text, counts = unwrap_generation_output(answer)
            given = {} if counts is None else vars(counts)
            cost = costs.get((*request.args[-2:], request.args[-3]))
            found.append(GenerationResult(text, Measured(**given, cost=cost)))
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[Any]:
        """The class's own, pruned; what a text-guided method kept for an earlier round is refused for a later one."""
        with self._prune():
            return super().generate_until_multi_round(requests)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The class's own, pruned."""
        with self._prune():
            return super().loglikelihood(requests)

    def _prune(self) -> AbstractContextManager[Run | None]:
        return self.plan.attach(self.model) or nullcontext()


class Documents:
    """The harness's documents. Every model looks them up in the order of its batches, which tells the rows apart."""

    def __init__(self, tasks: dict[str, Any]) -> None:
        self.tasks = tasks
        self._asked: list[tuple] = []

    def __getitem__(self, task: str) -> _Task:
        return _Task(self, task)

    def note(self, *key: Any) -> None:
        """Task, split and number of a document that goes into a batch."""
        self._asked.append(key)

    def costs(self, prompts: list[list[RowCost]]) -> dict[tuple, RowCost]:
        """What each document's prompt cost; nothing where rows and documents do not match."""
        rows = [cost for prompt in prompts for cost in prompt]
        if len(rows) != len(self._asked):
            logger.warning(f"{len(rows)} rows were read for {len(self._asked)} documents: no cost is logged.")
            return {}
        return dict(zip(self._asked, rows, strict=True))


class _Task:
    def __init__(self, documents: Documents, name: str) -> None:
        self._documents, self._name = documents, name

    def __getitem__(self, split: str) -> _Split:
        return _Split(self._documents, self._name, split)


class _Split:
    def __init__(self, documents: Documents, *key: str) -> None:
        self._documents, self._key = documents, key
        self._rows = documents.tasks[key[0]][key[1]]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        self._documents.note(*self._key, number)
        return self._rows[number]


def arguments_of(cls: type) -> set[str]:
    """Named arguments of a class, those of its bases included where it hands on the rest."""
    found: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        made: Any = vars(base)["__init__"]
        parameters = inspect.signature(made).parameters.values()
        found |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} - {"self"}
        if base is lmms or not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _copy(request: Instance) -> Instance:
    own = copy.copy(request)
    own.arguments = tuple(copy.deepcopy(a) if isinstance(a, dict) else a for a in request.args)
    return own


def __getattr__(name: str) -> type[lmms]:
    kind, _, model = name.partition("_")
    if kind not in ("chat", "simple") or model not in WRAPPED:
        raise AttributeError(name)
    cls = get_model(model, force_simple=kind == "simple")
    made = type(f"Tokenprune{cls.__name__}", (Pruned, cls), {"__module__": __name__, "is_simple": cls.is_simple})
    globals()[name] = made
    return made
