"""The two calls that people make: `prune` a model, `select` without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from tokenprune.attach.run import Run
from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection
from tokenprune.errors import BadInput, unknown
from tokenprune.methods.base import SIGNALS, Method, View, make_method
from tokenprune.methods.registry import method_class
from tokenprune.methods.stage import Stage


def prune(
    model: PreTrainedModel,
    method: str | Method | Stage | Sequence[Stage],
    *,
    at: int | None = None,
    positions: str = "original",
    turns: str = "refuse",
    **options: Any,
) -> Run:
    """Attach pruners to a model; the result is a context manager with `remove()`, `report()` and `kept`.

    model: a Hugging Face vision-language model of a supported family.
    method: a method's name (options such as `keep=0.1` follow), a method, a `Stage`, or several stages.
    at: decoder layer before which a single method runs, 0 = before the LLM; default: where the paper puts it.
    positions: `original` keeps the survivors' position ids, `compact` renumbers them as if the prompt had been short.
    turns: what happens when a later question meets a cache whose visual tokens a text-guided method (`fastv`) chose
        for an earlier one. `refuse` raises `Unsupported`; `accept` answers it from those tokens. Methods that do not
        read the question serve every turn alike.

    Raises `Unsupported` for a model or a way of running that cannot be pruned correctly, `BadInput` for a wrong
    argument.
    """
    if isinstance(method, str):
        stages = [_stage(make_method(method_class(method), options), at)]
    elif options:
        raise BadInput(f"Options ({', '.join(options)}) go with a method's name; give the others to the method itself.")
    elif isinstance(method, Method):
        stages = [_stage(method, at)]
    else:
        stages = [method] if isinstance(method, Stage) else list(method)
        wrong = [s for s in stages if not isinstance(s, Stage)]
        if wrong:
            raise BadInput(f"{wrong[0]!r} is not a Stage. Write Stage(at, method).")
        if at is not None:
            raise BadInput("at= goes with a single method; a Stage says where it stands.")
    return Run(model, stages, positions, turns)


def _stage(method: Method, at: int | None) -> Stage:
    return Stage(method.default_at if at is None else at, method)


def select(
    method: str | Method, *, keep: Keep | None = None, grid: tuple[int, int, int] | None = None, **arguments: Any
) -> Selection:
    """Run a method on signals that you bring, without any model.

    arguments: signals (see `tokenprune.methods.base.SIGNALS`) and options of the method, by name. Signals are those of
    one span ([n, d] features give an index [k]) or of S spans stacked in front ([S, n, d] give [S, k]).
    """
    signals = {name: value for name, value in arguments.items() if name in SIGNALS}
    options = {name: value for name, value in arguments.items() if name not in SIGNALS}
    if isinstance(method, str):
        cls = method_class(method)
        given = options if keep is None else options | {"keep": keep}
        known = [*SIGNALS, "grid", *cls.__dataclass_fields__]
        for name in options:
            if name not in cls.__dataclass_fields__:
                raise unknown(f"signal or option of {cls.name}", name, known)
        method = make_method(cls, given)
    elif options:
        raise unknown(f"signal of {method.name}", next(iter(options)), [*SIGNALS, "grid"])
    elif keep is not None:
        method = replace(method, keep=keep)
    return _select(method, signals, grid)


def _select(method: Method, signals: dict[str, Any], grid: tuple[int, int, int] | None) -> Selection:
    if not signals:
        raise BadInput(f"No signals. {method.name} needs the number of tokens: give features=[n, d] or another signal.")
    signals = {name: torch.as_tensor(value) for name, value in signals.items()}
    extra_axes = {value.ndim - SIGNALS[name].ndim for name, value in signals.items()}
    if extra_axes not in ({0}, {1}):
        shapes = ", ".join(f"{name}{list(value.shape)}" for name, value in signals.items())
        wanted = ", ".join(f"{name} {SIGNALS[name].shape}" for name in signals)
        raise BadInput(f"The shapes of {shapes} do not fit: expected {wanted}, or that with [S] in front.")
    counts = {name: value.shape[SIGNALS[name].token_axis] for name, value in signals.items()}
    if len(set(counts.values())) > 1:
        raise BadInput(f"The signals disagree on the number of tokens: {counts}.")
    count = next(iter(counts.values()))
    if count == 0:
        raise BadInput("There are no tokens to choose from (n = 0).")
    bad = [name for name, value in signals.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise BadInput(f"{bad[0]} holds NaN or infinite values.")
    single = extra_axes == {0}
    stacked = {name: value[None] if single else value for name, value in signals.items()}
    spans = next(iter(stacked.values())).shape[0]
    result = method.select(View(count, spans, grid, stacked))
    if not single:
        return result
    return Selection(result.index[0], None if result.weights is None else result.weights[0])
