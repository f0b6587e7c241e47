"""Decoding that transformers compiles: what a step of it runs, and the hooks that are traced with it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from tokenprune.engine.cache import CACHE_NAMES, PrunedLayer, cache_in
from tokenprune.engine.prompt import media_in
from tokenprune.engine.refuse import COMPILED, compiling
from tokenprune.engine.settled import Settled
from tokenprune.engine.setup import Setup
from tokenprune.errors import Unsupported
from tokenprune.signals import taps

LONGEST = "_previous_max_cache_length"  # of a model that has generated with a static cache
Lift = Callable[[], AbstractContextManager[None]]


class CompiledSteps:
    """The compiled forward that `generate` calls for each token once the prompt has been through.

    A prompt is never compiled: every one keeps other rows. What follows it a token at a time runs on a `Settled` cache.
    """

    def __init__(self, setup: Setup, lift: Lift, compiled: Callable[..., Any]) -> None:
        """lift: opens a time in which nothing is pruned. compiled: the model's own compiled forward."""
        self.setup, self.lift, self.compiled = setup, lift, compiled
        self.settled: Settled | None = None

    def __call__(self, **inputs: Any) -> Any:
        """The output of the model, its cache the one that was given. Raises `Unsupported` where a step of this model
        cannot be compiled."""
        cache, ids = cache_in(inputs), inputs.get("input_ids")
        if media_in(inputs) or ids is None or ids.shape[1] > 1:  # a prompt in pieces
            return self.setup.model(**inputs)
        if cache is None or not any(isinstance(layer, PrunedLayer) for layer in cache.layers):
            with self.lift(), taps.unheard():
                return self.compiled(**inputs)
        if self.settled is None or not self.settled.fits(cache):
            self.settled = Settled(self.setup, cache, inputs.get("attention_mask"))
        name = next(name for name in CACHE_NAMES if inputs.get(name) is cache)
        with taps.unheard():
            output = self.compiled(**inputs | {name: self.settled, "attention_mask": None})
        self.settled.follow()
        output[name] = cache
        return output


def wrapping(setup: Setup, lift: Lift) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes of a model's `get_compiled_call` one whose steps run pruned."""

    def wrapped(get_compiled_call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(get_compiled_call)
        def getting(*args: Any, **kwargs: Any) -> CompiledSteps:
            return CompiledSteps(setup, lift, get_compiled_call(*args, **kwargs))

        return getting

    return wrapped


@contextmanager
def own_length(model: PreTrainedModel) -> Iterator[None]:
    """While this is open, `generate` makes a static cache as long as it needs. It would make it as long as the longest
    before, so that graphs fit; a pruned cache has buckets for that."""
    longest = vars(model).pop(LONGEST, None)
    try:
        yield
    finally:
        if longest is not None:
            setattr(model, LONGEST, longest)


def noticed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that does the same and is another: graphs look at a module's forward, not at its hooks, and those that
    were made before a model was pruned are not to serve it."""

    @functools.wraps(forward)
    def same(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return same


def hook_or_step(
    lifted: threading.local, hook: Callable[..., Any], traced: Callable[..., Any] | None
) -> Callable[..., Any]:
    """A hook that runs unless its run is lifted, refuses a model that others compile, and leaves compiled steps to
    `traced`, which is given their cache before what the hook is given."""

    def call(*arguments: Any) -> Any:
        given = arguments[-1]  # keyword arguments, or the output
        cache = cache_in(given) if isinstance(given, dict) else None
        if isinstance(cache, Settled):  # asked first: a graph of steps must not depend on what this thread did before
            return None if traced is None else traced(cache, *arguments)
        if getattr(lifted, "now", False):
            return None
        if not compiling():
            return hook(*arguments)
        if traced is not None:
            raise Unsupported(COMPILED)
        return None

    return call


def before_text(step: Settled, module: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    """What the text model gets."""
    return args, step.begin(module, kwargs)


def before_layer(i: int, step: Settled, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    """What layer i gets."""
    return args, step.layer_inputs(i, kwargs)


def after_text(step: Settled, module: nn.Module, args: tuple, output: Any) -> None:
    """Let go of what a step made."""
    step.end()


def as_it_is(step: Settled, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """A step changes nothing here."""
