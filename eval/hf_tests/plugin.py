"""The pytest plugin of `make hf-tests`: every test of transformers runs unpruned, and then once for each mode, pruned.

Models are pruned at the end of their construction, so those that a test loads or builds anew are pruned as well.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from _pytest.runner import runtestprotocol
from torch import nn
from transformers import PreTrainedModel

import tokenprune
from eval.hf_tests.verdict import Listed, Outcome, Results
from tokenprune.families.registry import all_families

MIXINS = ("ModelTesterMixin", "GenerationTesterMixin")
# Checks of the generation mixin that know one length only, which differs from layer to layer where tokens were dropped.
SHAPE_CHECKS = ("_check_attentions_for_generate", "_check_past_key_values_for_generate")
QUESTION = [7, 8, 9]  # ids that are nothing special to any tester
PROMPTS = "prepare_config_and_inputs_for_common"
PREPARE = "_prepare_for_class"  # where a test gets its inputs, labels among them
HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith(("_hooks", "_buffers", "_parameters", "_modules")))


@dataclass(frozen=True)
class Mode:
    """What is done to every model: a method before a decoder layer, and whether it is taken off again."""

    text: str
    method: str = ""
    at: int = 0
    keep: float = 1.0
    removed: bool = False


MODES = {
    "none": Mode("unpruned"),
    "a": Mode("`random` keep=1.0 before the LLM", "random"),
    "b": Mode("`fastv` keep=1.0 before layer 1", "fastv", at=1),
    "c": Mode("`random` keep=0.5 before the LLM", "random", keep=0.5),
    "d": Mode("`fastv` keep=0.5 before layer 1", "fastv", at=1, keep=0.5),
    "e": Mode("`random` and `fastv` at keep=0.5, removed", removed=True),
}


def model_types() -> list[str]:
    """The supported model types; each has a folder of tests."""
    return sorted({name for family in all_families().values() for name in family.model_types})


def supported(cls: Any) -> bool:
    """Whether a model class is one of those types."""
    return getattr(getattr(cls, "config_class", None), "model_type", None) in set(model_types())


def placeholders(config: Any) -> list[int]:
    """The ids of image and video tokens, whatever they are called."""
    names = [f"{media}_token_{kind}" for media in ("image", "video") for kind in ("id", "index")]
    return [getattr(config, name) for name in names if getattr(config, name, None) is not None]


def put_question(config: Any, inputs: dict[str, Any]) -> int:
    """Put a question behind the rows of a tester if one of them ends with an image token; how many tokens it has."""
    ids = inputs.get("input_ids")
    if not isinstance(ids, torch.Tensor) or not torch.isin(ids[:, -1], torch.tensor(placeholders(config))).any():
        return 0
    values = {"input_ids": QUESTION, "attention_mask": [1] * len(QUESTION)}
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.shape == ids.shape:
            more = value.new_tensor(values.get(name, [0] * len(QUESTION)))
            inputs[name] = torch.cat([value, more.expand(len(value), -1)], 1)
    return len(QUESTION)


def snapshot(model: nn.Module) -> dict[tuple[str, str], Any]:
    """The attributes of every module, tables of hooks and parts by what is in them."""
    return {
        (path, name): tuple(map(id, value.values())) if name in HOOKS else id(value)
        for path, module in model.named_modules()
        for name, value in [*vars(module).items(), ("forward", type(module).forward)]
    }


def tests_a_model(item: pytest.Item) -> bool:
    """Whether a test belongs to the test class of a supported model; a class that does not tell its models is one."""
    cls = getattr(item, "cls", None)
    if cls is None or not any(base.__name__ in MIXINS for base in cls.__mro__):
        return False
    tester = getattr(cls, "model_tester_class", None)
    models = list(getattr(cls, "all_model_classes", None) or ())
    models += [getattr(tester, "base_model_class", None)] if tester else []
    models = [model for model in models if inspect.isclass(model)]
    return not models or any(supported(model) for model in models)


class Plugin:
    """Runs every collected test in every mode and keeps what came of it in `results[model type][mode][test]`."""

    def __init__(
        self,
        types: Sequence[str],
        modes: Sequence[str],
        listed: Listed,
        everything: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """types: whose models are pruned. modes: the first is the baseline, the others run where it passed.

        everything: not the short list alone.
        say: is told of a model type whose tests are through.
        """
        self.types, self.modes, self.listed = types, list(modes), listed
        self.everything, self.say = everything, say
        self.mode = MODES[modes[0]]
        self.now = Outcome()
        self.runs: list[tokenprune.Run] = []
        self.results: Results = {}
        self._depth = 0
        self._undo = contextlib.ExitStack()

    def attach(self, model: PreTrainedModel) -> None:
        """Do to a new model what the mode says; an error that this raises is the test's."""
        mode, kept = self.mode, self.listed.keep.get(model.config.model_type, 0.5)
        if mode.removed:
            before = snapshot(model)
            for method, at in (("random", 0), ("fastv", 1)):
                tokenprune.prune(model, method, at=at, keep=kept).remove()
            after = snapshot(model)
            traces = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
            assert not traces, f"remove() left traces in a {type(model).__name__}: {traces[:4]}"
        elif mode.method:
            keep = kept if mode.keep < 1 else mode.keep
            self.runs.append(tokenprune.prune(model, mode.method, at=mode.at, keep=keep))

    @contextlib.contextmanager
    def pruned_when_built(self, cls: type[PreTrainedModel]) -> Iterator[None]:
        """While this is open, models of this class are pruned once the outermost constructor is through."""
        build = cls.__init__

        @functools.wraps(build)
        def constructor(model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
            self._depth += 1
            try:
                build(model, *args, **kwargs)
            finally:
                self._depth -= 1
            if self._depth == 0:
                self.attach(model)

        cls.__init__ = constructor
        try:
            yield
        finally:
            cls.__init__ = build

    @contextlib.contextmanager
    def without_shape_checks(self, mixin: type, name: str) -> Iterator[None]:
        """While this is open, a check does nothing in modes that drop tokens."""
        check = vars(mixin)[name]

        @functools.wraps(check)
        def unless_dropping(*args: Any, **kwargs: Any) -> None:
            if self.mode.keep == 1:
                check(*args, **kwargs)

        setattr(mixin, name, unless_dropping)
        try:
            yield
        finally:
            setattr(mixin, name, check)

    @contextlib.contextmanager
    def labels_behind_images(self, mixin: type, name: str) -> Iterator[None]:
        """While this is open, labels that a test is given count from the second token behind the last image on.

        The mixin's count from the first column, and pruning is refused where an image token is to predict something:
        nothing of training would be tested.
        """
        prepare = vars(mixin)[name]

        @functools.wraps(prepare)
        def prepared(test: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
            inputs = prepare(test, *args, **kwargs)
            labels, ids = inputs.get("labels"), inputs.get("input_ids")
            if labels is not None and ids is not None and labels.shape == ids.shape:
                visual = torch.isin(ids, torch.tensor(placeholders(test.model_tester.get_config())))
                after = visual.roll(1, 1)
                labels[(visual | after).flip(1).cummax(1).values.flip(1)] = -100
            return inputs

        setattr(mixin, name, prepared)
        try:
            yield
        finally:
            setattr(mixin, name, prepare)

    @contextlib.contextmanager
    def questions_behind_images(self, cls: type) -> Iterator[None]:
        """While this is open, prompts of the tester that end with an image get a question behind it, in every mode.

        What comes next would be read from an image token, so pruning it is refused, and nothing would be tested.
        """
        set_up = cls.setUp

        @functools.wraps(set_up)
        def asking(test: Any) -> None:
            set_up(test)
            tester = getattr(test, "model_tester", None)
            prepare, length = getattr(tester, PROMPTS, None), getattr(tester, "seq_length", 0)

            def asked(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
                tester.seq_length = length
                config, inputs = prepare(*args, **kwargs)
                tester.seq_length = length + put_question(config, inputs)
                return config, inputs

            if prepare is not None:
                setattr(tester, PROMPTS, asked)

        cls.setUp = asking
        try:
            yield
        finally:
            cls.setUp = set_up

    @contextlib.contextmanager
    def built_with(self, tester: type, arguments: dict[str, Any]) -> Iterator[None]:
        """While this is open, a tester gets these arguments, for models that are pruned at all."""
        build = tester.__init__
        tester.__init__ = functools.partialmethod(build, **arguments)
        try:
            yield
        finally:
            tester.__init__ = build

    def pytest_configure(self) -> None:
        """Put constructors that prune into every model class of these types."""
        for name in self.types:
            module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
            for cls in vars(module).values():
                own = inspect.isclass(cls) and cls.__module__ == module.__name__ and "__init__" in vars(cls)
                if own and issubclass(cls, PreTrainedModel) and supported(cls):
                    self._undo.enter_context(self.pruned_when_built(cls))

    def pytest_unconfigure(self) -> None:
        """Leave transformers as it was."""
        self._undo.close()

    def wanted(self, test: str) -> bool:
        """Whether a test of this name runs."""
        return self.everything or any(re.fullmatch(pattern, test) for pattern in self.listed.short)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave the wanted tests of supported models; take the shape checks out of their mixins."""
        kept = [item for item in items if tests_a_model(item) and self.wanted(item.name)]
        for item in {item.cls: item for item in kept}.values():
            self._undo.enter_context(self.questions_behind_images(item.cls))
            arguments = self.listed.testers.get(folder(item))
            if arguments:
                self._undo.enter_context(self.built_with(item.cls.model_tester_class, arguments))
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
        mixins = dict.fromkeys(base for item in kept for base in item.cls.__mro__)
        for mixin in mixins:
            for name in vars(mixin).keys() & set(SHAPE_CHECKS):
                self._undo.enter_context(self.without_shape_checks(mixin, name))
            if PREPARE in vars(mixin):
                self._undo.enter_context(self.labels_behind_images(mixin, PREPARE))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run a test in every mode; the terminal hears of the baseline alone."""
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        own = self.results.setdefault(folder(item), {})
        for name in self.modes:
            self.mode, self.now = MODES[name], Outcome()
            _seed()
            start = time.process_time()
            runtestprotocol(item, nextitem=nextitem, log=name == self.modes[0])
            self.now.seconds = round(time.process_time() - start, 2)
            own.setdefault(name, {})[f"{item.cls.__name__}::{item.name}"] = self.now
            if name == self.modes[0] and self.now.outcome != "passed":
                break
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if nextitem is None or folder(nextitem) != folder(item):
            counts = {name: Counter(one.outcome for one in tests.values()) for name, tests in own.items()}
            self.say(f"{folder(item)}: " + "; ".join(f"{n} {_shown(count)}" for n, count in counts.items()))
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Any:
        """Keep the outcome; subtests come here too, before the test that they are part of."""
        report = yield
        subtest = call.when == "call" and not call.start
        if report.outcome == "failed":
            self.now.outcome = "failed"
            # What pytest says in the end of a test with failed subtests is no failure of its own.
            if call.excinfo is not None and "subtest" not in call.excinfo.exconly()[:60]:
                self.now.errors.append(described(call.excinfo.value))
        elif not subtest and self.now.outcome != "failed" and (call.when == "call" or report.outcome == "skipped"):
            self.now.outcome = report.outcome
        return report

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self) -> None:
        """Count what the stages did, and take the pruners off: a model that stays would spoil the next baseline."""
        for run in self.runs:
            with contextlib.suppress(tokenprune.BadInput):  # it saw no picture
                for stage in run.report().stages:
                    self.now.stages += 1
                    self.now.dropped += sum(stage.before) - sum(stage.after)
            run.remove()
        self.runs.clear()


def folder(item: pytest.Item) -> str:
    """The model type whose test this is."""
    return item.path.parent.name


def _shown(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())


def described(error: BaseException) -> str:
    """Type and text of an exception, as a traceback ends."""
    kind = type(error)
    return f"{kind.__module__}.{kind.__qualname__}: {error}".strip()


def _seed() -> None:
    """The same weights and inputs in every mode."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    with contextlib.suppress(ImportError, AttributeError):  # tests of our own do without
        importlib.import_module("tests.test_modeling_common").global_rng.seed(0)
