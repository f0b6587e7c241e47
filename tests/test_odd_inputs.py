"""Random odd inputs to `tokenprune.select`: what comes back honours the contract, or is refused on purpose."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pytest
import torch

from tests.draw import SEED
from tests.signals import SIZES, signals
from tokenprune import BadInput, MissingSignal, Unsupported, select
from tokenprune.core.budget import n_keep
from tokenprune.methods.base import options_of, signals_of
from tokenprune.methods.registry import all_methods, method_class
from tokenprune.signals.table import SIGNALS

ROUNDS = 40  # of each method; other ones with every TP_SEED
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
OTHERS = [torch.int64, torch.uint8, torch.bool, torch.complex64]
KEEPS = [1, 2, 0, 0.01, 0.1, 0.3, 0.5, 0.999, 1.0]
BAD_KEEPS = [-1, 0.0, -0.2, 1.5, float("nan"), float("inf"), True, "half", None, 10**9, torch.tensor(0.5), [1]]
GRIDS = [(1, 1, 1), (1, 1, 7), (1, 4, 4), (3, 2, 2), (4, 3, 3), (9, 1, 2), [(1, 2, 3), (1, 4, 5)], [(2, 2, 2)] * 3]
BAD_GRIDS = [(0, 2, 2), (1, 2), "grid", (1.0, 2.0, 3.0), (1, 2, 1000), [], [(1, 2, 3), 5], 7, (True, True, True), [[]]]
BAD_VALUES = ["text", None, [[1.0], [1.0, 2.0]], {}, object()]


def values(chance: random.Random, shape: list[int], seed: int) -> torch.Tensor:
    """Numbers of one kind: plain, equal, none, huge, tiny, few different ones, rows that repeat."""
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=made)
    kind = chance.choice(["plain", "plain", "ties", "zeros", "level", "huge", "tiny", "mixed", "rows", "one", "signs"])
    if kind == "ties":
        return x.round()
    if kind == "zeros":
        return x * 0.0
    if kind == "level":
        return torch.full(shape, 0.25)
    if kind == "huge":
        return x.clamp(-3, 3) * chance.choice([1e4, 1e18, 1e37])
    if kind == "tiny":
        return x * chance.choice([1e-7, 1e-20, 1e-42])
    if kind == "mixed":
        return x * 10.0 ** torch.randint(-20, 20, shape, generator=made)
    if kind == "rows" and len(shape) > 1:
        return x[..., :1, :].expand(shape).clone()
    if kind == "one":
        return torch.zeros(shape).index_fill(-1, torch.tensor([0]), 1.0) if shape[-1] else x
    return x.abs() if kind == "signs" else x


@dataclass
class Case:
    """One call of `select`."""

    method: str
    tokens: int
    arguments: dict[str, Any]
    given: list[str]  # names of its signals
    options: dict[str, Any] = field(default_factory=dict)
    broken: bool = False  # whether something was made wrong that may be refused

    def __str__(self) -> str:
        parts = [
            f"{name}={list(v.shape)} {v.dtype}" if isinstance(v, torch.Tensor) and v.ndim else f"{name}={v!r}"
            for name, v in self.arguments.items()
        ]
        return f"{self.method} {self.options} n={self.tokens} {', '.join(parts)}"


def drawn(method: str, number: int) -> Case:
    """The case of a method with that number."""
    chance = random.Random(f"{SEED} {method} {number}")
    cls = method_class(method)
    grid = chance.choice(GRIDS)
    parts = grid if isinstance(grid, list) else [grid]
    n, frames = sum(t * h * w for t, h, w in parts), sum(t for t, _, _ in parts)
    sizes = SIZES | {"n": n, "t": frames, "m": chance.choice([1, 2, 5, 9]), "d": chance.choice([1, 8])}
    front = chance.choice([[], [], [1], [3]])
    options: dict[str, Any] = {}
    if chance.random() < 0.5:
        own = [f for f in options_of(cls) if f.metadata["choices"]]
        picked = chance.choice(own)
        options[picked.name] = chance.choice(picked.metadata["choices"])
    try:
        needs = [need.signal for need in cls(**options).needs]
    except BadInput:
        options, needs = {}, signals_of(cls)
    names = list(dict.fromkeys([*needs, *chance.sample(list(SIGNALS), chance.choice([0, 0, 1, 3]))])) or ["features"]
    if not any(SIGNALS[name].token_axis is not None for name in names):
        names.append("features")
    arguments: dict[str, Any] = {"keep": chance.choice(KEEPS), "grid": grid}
    if isinstance(arguments["keep"], int):
        arguments["keep"] = min(arguments["keep"], n)
    for i, name in enumerate(names):
        x = values(chance, [*front, *(sizes[axis] for axis in SIGNALS[name].axes)], 100 * number + i)
        positive = "attention" in name or SIGNALS[name].ndim == 1
        if name == "frame_scores" or (positive and chance.random() < 0.8):
            x = x.abs()
        arguments[name] = x.long().clamp(0, 9) if name == "voxels" else x
    dtype = chance.choice(FLOATS)
    for name in names:
        if name != "voxels":
            arguments[name] = arguments[name].clamp(-6e4, 6e4).to(dtype) if chance.random() < 0.9 else arguments[name]
    case = Case(method, n, arguments, names, options)
    if chance.random() < 0.6:
        spoil(chance, case, front, sizes)
    return case


def tokens_of(case: Case) -> int:
    """How many tokens the signals have in the end; they agree, or the case is refused."""
    name = next(name for name in case.given if SIGNALS[name].token_axis is not None)
    return torch.as_tensor(case.arguments[name]).shape[SIGNALS[name].token_axis]


def spoil(chance: random.Random, case: Case, front: list[int], sizes: dict[str, int]) -> None:
    """Make one thing wrong, or at least strange."""
    case.broken = True
    name = chance.choice(case.given)
    value = case.arguments[name]
    how = chance.choice(
        ["axis", "axis", "axis", "dtype", "nan", "missing", "grid", "keep", "tokens", "total", "value", "front", "size"]
    )
    if how in ("axis", "size"):
        axis = chance.choice(range(value.ndim))
        shape = list(value.shape)
        shape[axis] = chance.choice([0, 1, shape[axis] + 1, 2 * shape[axis], max(0, shape[axis] - 1)])
        if how == "size":  # of every signal that has the axis
            letter = chance.choice(SIGNALS[name].axes)
            size = chance.choice([0, 1, 2, 3])
            for other in case.given:
                shape = [
                    size if a == letter else s
                    for a, s in zip(["S"] * len(front) + SIGNALS[other].axes, case.arguments[other].shape, strict=True)
                ]
                case.arguments[other] = torch.rand(shape).to(case.arguments[other].dtype)
        else:
            case.arguments[name] = torch.rand(shape).to(value.dtype)
    elif how == "dtype":
        for other in case.given if chance.random() < 0.5 else [name]:
            case.arguments[other] = case.arguments[other].to(chance.choice([*OTHERS, torch.float64, torch.float16]))
    elif how == "nan" and value.is_floating_point():
        case.arguments[name] = value = value.double() if chance.random() < 0.3 else value
        worst = [1e200, -1e200] if value.dtype == torch.float64 else []
        value.view(-1)[chance.randrange(value.numel())] = chance.choice([*worst, *map(float, ("nan", "inf", "-inf"))])
    elif how == "missing":
        del case.arguments[name]
        case.given.remove(name)
    elif how == "grid":
        case.arguments["grid"] = chance.choice([None, *BAD_GRIDS, *GRIDS])
    elif how == "keep":
        case.arguments["keep"] = chance.choice(BAD_KEEPS)
    elif how == "tokens":
        n = case.tokens
        whole = 2 * n + 3
        case.arguments["total"] = chance.choice([whole, None, n])
        case.arguments["tokens"] = chance.choice(
            [
                torch.arange(n),
                torch.arange(n) * 2,
                torch.zeros(n, dtype=torch.long),
                torch.arange(n).flip(0),
                torch.arange(n) - 1,
                torch.arange(n) + 10**6,
                torch.arange(n + 1),
                torch.rand(n),
                torch.arange(n).expand(2, -1),
                torch.tensor(3),
                list(range(n)),
                "all",
            ]
        )
    elif how == "total":
        case.arguments["total"] = chance.choice([0, -3, 1, case.tokens, 10 * case.tokens, 2.5, "many", True])
    elif how == "value":
        case.arguments[name] = chance.choice([*BAD_VALUES, value.tolist(), value.float().numpy()])
    elif how == "front":
        case.arguments[name] = value[None] if chance.random() < 0.5 else value[0]


def broken_contract(case: Case, chosen: Any, spans: tuple[int, ...]) -> str:
    """What is wrong with a selection; empty where nothing is."""
    cls, index = method_class(case.method), chosen.index
    real = torch.ones_like(index, dtype=torch.bool) if chosen.valid is None else chosen.valid
    if index.dtype != torch.long or tuple(index.shape[:-1]) != spans:
        return f"index is {index.dtype} {list(index.shape)}"
    if not bool(((index.diff(dim=-1) > 0) | ~real[..., 1:]).all()):
        return "not ascending and unique"
    if not bool((((index >= 0) & (index < case.tokens)) | ~real).all()):
        return "out of range"
    if chosen.weights is not None and not chosen.weights.isfinite().all():
        return "weights that are not finite"
    if chosen.weights is not None and chosen.weights.shape != (*index.shape, case.tokens):
        return f"weights of shape {list(chosen.weights.shape)}"
    plain = not {name for name in case.options if name not in ("rounding", "of")}
    keep = case.arguments["keep"]
    if plain and keep is not None and case.options.get("of", cls().of) == "current":
        k = keep if isinstance(keep, int) else n_keep(keep, case.tokens, case.options.get("rounding", cls().rounding))
        k = min(k, case.tokens)
        if index.shape[-1] != k or not bool(real.all()):
            return f"{index.shape[-1]} tokens of {k}"
    return ""


@pytest.mark.parametrize("method", list(all_methods()))
def test_odd_inputs_are_served_or_refused(method):
    served = 0
    for number in range(ROUNDS):
        case = drawn(method, number)
        try:
            chosen = select(case.method, **case.options, **case.arguments)
        except (BadInput, Unsupported) as error:
            if not case.broken:
                pytest.fail(f"refused without a reason: {error}\n{case}")
            continue
        except MissingSignal as error:
            if any(f"{name!r}" in str(error) for name in case.given):
                pytest.fail(f"{error}\n{case}")
            continue
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\n{case}")
        case.tokens = tokens_of(case)
        first = torch.as_tensor(case.arguments[case.given[0]])
        spans = tuple(first.shape[: first.ndim - SIGNALS[case.given[0]].ndim])
        wrong = broken_contract(case, chosen, spans)
        assert not wrong, f"{wrong}: {case}"
        served += 1
    assert served > ROUNDS // 5


def pairs():
    """Every two signals that share an axis, and that axis."""
    for first, second in combinations(SIGNALS, 2):
        for axis in dict.fromkeys(SIGNALS[first].axes):
            if axis in SIGNALS[second].axes:
                yield pytest.param(first, second, axis, id=f"{first}-{second}-{axis}")


@pytest.mark.parametrize(("first", "second", "axis"), list(pairs()))
def test_two_signals_that_disagree_are_named_with_their_shapes(first, second, axis):
    small = {name: torch.ones([SIZES.get(a, 6) for a in SIGNALS[name].axes]) for name in (first, second)}
    sizes = SIZES | {axis: 9}
    large = torch.ones([sizes.get(a, 6) for a in SIGNALS[second].axes])
    small = {name: x.long() if name == "voxels" else x for name, x in small.items()}
    given = small | {second: large.long() if second == "voxels" else large}
    tokens = {} if "n" in SIGNALS[first].axes + SIGNALS[second].axes else {"saliency": torch.ones(6)}
    select("random", keep=2, **small, **tokens)
    with pytest.raises(BadInput) as error:
        select("random", keep=2, **given, **tokens)
    for name, value in given.items():
        assert f"{name} {list(value.shape)}" in str(error.value)
    with pytest.raises(BadInput, match="does not fit"):  # stacked by itself
        select("random", keep=2, **{**small, second: small[second][None]}, **tokens)


@pytest.mark.parametrize("method", ["cdpruner", "dart", "sparsevlm", "star_text", "quota", "fastvid", "adaptinfer"])
def test_a_method_never_sees_signals_that_disagree(method):
    """Whatever of its own signals is changed by one in whatever axis that another one shares."""
    own = signals(12, frames=3)
    changed = 0
    for options in [{f.name: c} for f in options_of(method_class(method)) for c in f.metadata["choices"]]:
        needs = [need.signal for need in method_class(method)(keep=4, **options).needs]
        for name, (place, axis) in ((n, a) for n in needs for a in enumerate(SIGNALS[n].axes)):
            others = [a for other in needs for a in SIGNALS[other].axes if other != name]
            if axis in others or SIGNALS[name].axes.count(axis) > 1:
                wrong = own[name].repeat_interleave(2, dim=place)
                with pytest.raises(BadInput, match="disagree"):
                    select(method, keep=4, grid=(3, 2, 2), **options, **{n: own[n] for n in needs} | {name: wrong})
                changed += 1
    assert changed
