"""The calls that people make: `prune` a model, `select` without one, `stream` frames into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenprune.core.budget import Keep
from tokenprune.core.selection import Selection
from tokenprune.engine.run import Run
from tokenprune.engine.stream import Stream
from tokenprune.errors import BadInput, unknown
from tokenprune.methods.base import Grid, Method, View, make_method, options_of
from tokenprune.methods.place import Place
from tokenprune.methods.registry import method_class
from tokenprune.plan import Plan, Planned
from tokenprune.signals.checks import common_sizes, one_dtype, read_signal
from tokenprune.signals.table import SIGNALS


def prune(
    model: PreTrainedModel,
    method: Planned,
    *,
    at: int | str | Place | None = None,
    positions: str | None = None,
    turns: str | None = None,
    scope: str | None = None,
    images: str | None = None,
    verify: str = "auto",
    **options: Any,
) -> Run:
    """Attach pruners to a model; the result is a context manager with `remove()`, `report()` and `kept`.

    model: a Hugging Face vision-language model of a supported family.
    method: a method's name (options such as `keep=0.1` follow), a method, a `Stage`, several stages, or a recipe: its
        name (see `tokenprune list --recipes`), its YAML file or a `Recipe`; or a `Plan` of all that, which then stands
        alone.
    at: decoder layer before which a single method runs, 0 = before the LLM, "decode" = at every decoding step;
        default: where the paper puts it, which may be several stages.
    positions: `original` keeps the survivors' position ids (the default, unless a recipe says otherwise), `compact`
        renumbers them as if the prompt had been short.
    turns: what happens when a later question meets a cache whose visual tokens a text-guided method (`fastv`) chose
        for an earlier one. `refuse` (the default) raises `Unsupported`; `accept` answers it from those tokens. Methods
        that do not read the question serve every turn alike.
    scope: `part` counts budgets in every base image, tile grid or video by itself, `item` in a picture with all its
        parts; default: the method's own.
    images: `each` (the default) is a picture by itself; `frames` takes the images of a row together as one video,
        whose frames they are.
    verify: whether the first prompt is compared with the full-length model in which the dropped tokens are masked,
        which costs one unpruned prefill. `auto`: where this transformers version was not tested with this one of
        tokenprune; `always`; `never`. What differs raises `Unsupported`. `check` compares decoding steps too.

    Raises `Unsupported` for a model or a way of running that cannot be pruned correctly, `BadInput` for a wrong
    argument.
    """
    plan = Plan.of(method, at=at, positions=positions, turns=turns, scope=scope, images=images, **options)
    run = plan.attach(model, verify)
    if run is None:
        raise BadInput("This plan prunes nothing. Call plan.attach(model), which then gives None, or name a method.")
    return run


def stream(
    model: PreTrainedModel,
    processor: Any,
    method: str | Method = "evs",
    *,
    budget: int = 4096,
    recent: int = 1,
    slack: float = 0.125,
    remember: int = 8,
    positions: str = "compact",
    **options: Any,
) -> Stream:
    """A conversation over frames that come in one at a time: `see(frame)`, `ask(question)`, `report()`.

    The visual tokens in the cache stay within `budget`: before there are more, `method` (a name, options follow, or a
    method; its own keep does not count) thins the frames that are there, all but the `recent` newest. Of questions and
    answers the newest `remember` turns stay. See `Stream`.
    """
    if isinstance(method, str):
        method = make_method(method_class(method), options)
    elif options:
        raise BadInput(f"Options ({', '.join(options)}) go with a method's name; give the others to the method itself.")
    return Stream(
        model, processor, method, budget=budget, recent=recent, slack=slack, remember=remember, positions=positions
    )


def select(
    method: str | Method,
    *,
    keep: Keep | None = None,
    grid: Grid | Sequence[Grid] | None = None,
    total: int | None = None,
    tokens: Tensor | None = None,
    **arguments: Any,
) -> Selection:
    """Run a method on signals that you bring, without any model.

    grid: (t, h, w) of the span, or one for each of its parts (base image, tiles), which then follow each other in the
    signals. total, tokens: where an earlier stage has removed some, how many there were and which are left (int64 [n]).
    arguments: signals (see `tokenprune.methods.base.SIGNALS`) and options of the method, by name. Signals are those of
    one span ([n, d] features give an index [k]) or of S spans stacked in front ([S, n, d] give [S, k]).
    """
    signals = {name: value for name, value in arguments.items() if name in SIGNALS}
    options = {name: value for name, value in arguments.items() if name not in SIGNALS}
    if isinstance(method, str):
        cls = method_class(method)
        given = options if keep is None else options | {"keep": keep}
        own = [field.name for field in options_of(cls)]
        known = [*SIGNALS, "grid", "total", "tokens", *own]
        for name in options:
            if name not in own:
                raise unknown(f"signal or option of {cls.name}", name, known)
        method = make_method(cls, given)
    elif options:
        raise unknown(f"signal of {method.name}", next(iter(options)), [*SIGNALS, "grid"])
    elif keep is not None:
        method = replace(method, keep=keep)
    return _select(method, signals, _grids(grid), total, tokens)


def _grids(grid: Grid | Sequence[Grid] | None) -> tuple[Grid, ...]:
    """The grid of each part, checked."""
    if grid is None:
        return ()
    found: Sequence[Any] = grid if isinstance(grid, Sequence) else ()
    parts = [found] if all(isinstance(size, Integral) for size in found) else found
    for part in parts:
        if (
            not isinstance(part, Sequence)
            or len(part) != 3
            or not all(isinstance(x, Integral) and int(x) > 0 for x in part)
        ):
            raise BadInput(
                f"grid={grid!r} is not (t, h, w), frames, rows and columns, or a list of such for the parts."
            )
    return tuple((int(t), int(h), int(w)) for t, h, w in parts)


def _select(
    method: Method, signals: dict[str, Any], grids: tuple[Grid, ...], total: int | None, tokens: Any
) -> Selection:
    if not signals:
        raise BadInput(f"No signals. {method.name} needs the number of tokens: give features=[n, d] or another signal.")
    signals = {name: read_signal(name, value) for name, value in signals.items()}
    first = next(iter(signals))
    single = signals[first].ndim <= SIGNALS[first].ndim
    sizes = common_sizes(signals.items(), stacked=not single)
    if "n" not in sizes:
        raise BadInput(
            f"None of {', '.join(signals)} counts the visual tokens. Give features=[n, d] or another signal."
        )
    frames = sum(t for t, _, _ in grids)
    if grids and sizes.get("t", frames) != frames:
        raise BadInput(f"The signals are of {sizes['t']} frames, the grid of {frames}.")
    count, spans = sizes["n"], sizes.get("S", 1)
    stacked = {name: value[None] if single else value for name, value in one_dtype(signals).items()}
    if total is not None and (isinstance(total, bool) or not isinstance(total, Integral) or total < count):
        raise BadInput(f"total={total!r} is not the number of tokens that there were, {count} or more.")
    if tokens is not None:
        bounds = [*([] if total is None else [total]), *([sum(t * h * w for t, h, w in grids)] if grids else [])]
        most = min(bounds, default=None)
        tokens = _tokens_left(tokens, count, spans, most)
    result = method.select(View(count, spans, grids, stacked, tokens, total or count))
    if not single:
        return result
    return Selection(*result.span(0))


def _tokens_left(tokens: Any, count: int, spans: int, most: int | None) -> Tensor:
    """int64 [S, n]: which tokens of the whole span, which had `most`, are left, checked."""
    try:
        found = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"tokens is not a tensor, and none can be made of it: {error}") from None
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise BadInput(f"tokens must be whole numbers, not {found.dtype}.")
    if found.ndim not in (1, 2) or found.shape[:-1].numel() not in (1, spans):
        raise BadInput(f"tokens has shape {list(found.shape)}: expected [n], or [S, n] for {spans} spans.")
    if found.shape[-1] != count:
        raise BadInput(f"tokens names {found.shape[-1]} tokens, but the signals have {count}.")
    found = found.long().expand(spans, count)
    if found.min() < 0 or (found.diff(dim=-1) <= 0).any():
        raise BadInput("tokens must be ascending, each of them once, and none below 0.")
    if most is not None and found.max() >= most:
        raise BadInput(f"tokens names token {int(found.max())}, but total and grid say that there were {most}.")
    return found
