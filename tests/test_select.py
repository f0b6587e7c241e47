"""`tokenprune.select`: the contract of every method, edges, and what it refuses."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenprune
from tests.signals import signals
from tokenprune import BadInput, MissingSignal, select
from tokenprune.catalogue import facts
from tokenprune.core.budget import n_keep
from tokenprune.core.diversity import cosine_distance, max_min, nearest, products
from tokenprune.core.selection import top_k
from tokenprune.methods.base import Method, make_method, options_of
from tokenprune.methods.registry import all_classes, all_methods, method_class
from tokenprune.signals.table import SIGNALS

ALL_OR_NOTHING = ("todre_migration", "lvlm_csp_scatter")  # stages that may keep everything whatever the budget
NAMES = [name for name in all_classes() if name not in ALL_OR_NOTHING]  # methods, and stages that belong to one


@given(method=st.sampled_from(NAMES), n=st.integers(1, 40), data=st.data())
def test_every_method_keeps_exactly_k_unique_ascending(method, n, data):
    """Law 5, on spans alone: ties, duplicates, k = n, k = 1 and one token included."""
    keep = data.draw(st.one_of(st.integers(1, n), st.floats(0.01, 1.0)))
    given_signals = signals(n, spans=data.draw(st.sampled_from([None, 1, 3])), seed=n)
    if data.draw(st.booleans()):
        given_signals = {name: torch.zeros_like(value) for name, value in given_signals.items()}
    state = torch.get_rng_state()
    grid = (1, 1, n) if n % 2 else (1, 2, n // 2)
    chosen = select(method, keep=keep, grid=grid, **given_signals)
    index = chosen.index
    assert torch.equal(torch.get_rng_state(), state)
    k = n_keep(keep, n, make_method(method_class(method), {}).rounding)
    assert index.dtype == torch.long
    assert index.shape[-1] == k
    assert (index.diff(dim=-1) > 0).all()
    assert index.min() >= 0
    assert index.max() < n
    if chosen.weights is not None:
        assert chosen.weights.shape == (*index.shape, n)
        assert chosen.weights.isfinite().all()


@pytest.mark.parametrize("method", NAMES)
def test_stacked_spans_equal_spans_alone(method):
    more = {"range": "span"} if method == "cdpruner" else {}  # by default it scales over all crops of a picture
    if make_method(method_class(method), more).together:
        pytest.skip("its spans bear on each other")
    stacked = signals(30, spans=4)
    together = select(method, keep=0.3, grid=(1, 5, 6), **more, **stacked)
    for i in range(4):
        alone = select(method, keep=0.3, grid=(1, 5, 6), **more, **{k: v[i] for k, v in stacked.items()})
        assert torch.equal(together.index[i], alone.index)
        if alone.weights is not None:
            torch.testing.assert_close(together.weights[i], alone.weights)


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_degenerate_inputs(method, dtype):
    """Low precision, duplicates, zero vectors and all-equal scores keep the contract."""
    n = 24
    for make in (lambda x: x, lambda x: x[..., :1, :].expand_as(x) if x.ndim > 1 else x, torch.zeros_like):
        made = {name: make(x) for name, x in signals(n, frames=2).items()}
        given_signals = {name: x.to(dtype) if x.is_floating_point() else x for name, x in made.items()}
        chosen = select(method, keep=7, grid=(2, 3, 4), **given_signals)
        assert len(chosen.index.unique()) == len(chosen.index) == 7
        if chosen.weights is not None:
            assert chosen.apply(given_signals["features"]).isfinite().all()


ENDS = {bool: (False, True), int: (0, 1, 50), float: (0.0, 1.0, 100.0)}
EXACT = {  # more of them at once, and choices; of a choice that is not here, the count may be the published one
    "hired": [{"crop_map": "tiles"}],
    "sparsevlm": [{"version": "2"}],
    "fopru": [{"strategy": "row"}],
    "todre": [{"objective": "maxmin", "source": "features"}],
    "visionzip": [{"merge": "mean"}],
    "vflowopt": [{"cell": 2.3}, {"recycle_in": "tiled", "entropy_weight": 0.5}],
    "efficientvla": [{"key": 1, "alpha": 0.0}],
    "lvlm_csp_cluster": [{"choice": choice} for choice in ("uniform", "saliency", "random")],
    "cdpruner": [{"relevance": "clip"}, {"theta": 0.5}, {"range": "span"}],
    "agile_ratio": [{"base": "visionzip"}, {"base": "efficientvla"}],
    "agilepruner": [{"tau_max": 5.0, "erank_average": 1.0}],
    "fastvid": [{"variant": "qwen", "every": 1}],
    "flashvid": [{"trees": "published"}],
    "coarse_to_fine": [{"threshold": -1.0}],
}
SHAPES = [(1, 1, 7), (2, 3, 5), [(1, 3, 4), (1, 5, 8)], [(1, 2, 3)] * 5]


def settings(cls):
    """Its own options one by one at other values: every choice, and numbers far out, where the method takes them."""
    for field in options_of(cls)[len(options_of(Method)) :]:
        for value in field.metadata["choices"] or ENDS.get(type(field.default), ()):
            if value != field.default:
                with suppress(BadInput):
                    cls(**{field.name: value})
                    yield {field.name: value}


@cache
def inputs():
    """Several parts, frames, one row; all tokens equal, no signal at all: (grid, number of tokens, signals)."""
    made = []
    for grid in SHAPES:
        parts = [grid] if isinstance(grid, tuple) else grid
        n = sum(t * h * w for t, h, w in parts)
        whole = signals(n, frames=sum(t for t, _, _ in parts))
        level = {name: x[..., :1, :].expand_as(x) if x.ndim > 1 else torch.ones_like(x) for name, x in whole.items()}
        empty = {name: torch.zeros_like(x) for name, x in whole.items()}
        made += [(grid, n, found) for found in (whole, level, empty)]
    return made


def contract(cls, options, budgets, exact=True):
    for grid, n, found in inputs():
        for k in budgets(n):
            chosen = select(cls(keep=k, **options), grid=grid, **found)
            assert not exact or len(chosen.index) == k
            assert (chosen.index.diff() > 0).all()
            assert torch.equal(chosen.index, chosen.index.clamp(0, n - 1))
            if chosen.weights is not None:
                assert chosen.weights.shape == (len(chosen.index), n)
                assert chosen.weights.isfinite().all()


@pytest.mark.parametrize(
    ("method", "options"),
    [(m, o) for m in NAMES for o in [{}, *EXACT.get(m, [])]] + [("todre_migration", {"share": 1e9})],
    ids=str,
)
def test_every_method_keeps_the_contract(method, options):
    """With nearly none and nearly all kept."""
    contract(method_class(method), options, lambda n: (1, 2, n // 2, n - 1))


@pytest.mark.parametrize("method", NAMES)
def test_every_option_keeps_the_contract(method):
    cls = method_class(method)
    choices = {field.name for field in options_of(cls) if field.metadata["choices"]}
    for options in settings(cls):
        contract(cls, options, lambda n: (1, n - 1), exact=not choices & {*options})


def test_limits_are_held_and_said():
    """At a limit a number is taken; past it, and where it is none, it is refused by name. Lists of options say both."""
    limited = [(cls, f) for cls in map(method_class, NAMES) for f in options_of(cls) if f.metadata["low"] is not None]
    assert len(limited) >= 29
    for cls, field in limited:
        low, high = field.metadata["low"], field.metadata["high"]
        said = f"at least {low}" if high is None else f"between {low} and {high}"
        assert facts.meaning(field).endswith(f"; {said}")
        many = len(field.default) if isinstance(field.default, tuple) else None
        for value in filter(lambda end: end is not None, (low, high)):
            cls(**{field.name: value if many is None else (value,) * many})
        for value in (low - 1, float("nan"), *([] if high is None else [high + 1])):
            with pytest.raises(BadInput, match=f"^{field.name}={value!r} of {cls.name} must be {said}"):
                cls(**{field.name: value if many is None else (value,) * many})


def test_no_option_has_the_name_of_a_signal():
    """`select` takes both by name."""
    taken = {*SIGNALS, "grid", "total", "tokens", "at", "positions", "turns", "scope", "model", "method"}
    for cls in map(method_class, NAMES):
        assert not taken & {field.name for field in options_of(cls)}, cls.name


@pytest.mark.parametrize("method", NAMES)
def test_keeping_all_changes_nothing(method):
    """Law 1 on spans: every token, none of them merged."""
    chosen = select(method, keep=1.0, grid=(1, 5, 6), **signals(30))
    assert chosen.index.tolist() == list(range(30))
    assert chosen.weights is None or torch.equal(chosen.weights, torch.eye(30))


@pytest.mark.parametrize("method", ["fastv", "fopru"])
def test_ties_go_to_the_lowest_index(method):
    level = {name: torch.ones_like(value) for name, value in signals(9).items()}
    assert select(method, keep=4, **level).index.tolist() == [0, 1, 2, 3]


def test_divprune_never_repeats_a_duplicate():
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(1)).repeat(12, 1)
    index = select("divprune", keep=20, features=x).index
    assert len(index.unique()) == 20
    assert len({i % 8 for i in index.tolist()}) == 8


def test_fopru_rows_are_whole():
    saliency = torch.tensor([0.0, 0.0, 0.95, 1.0, 0.8, 0.0, 0.3, 0.3, 0.3])
    assert select("fopru", keep=3, strategy="row", grid=(1, 3, 3), saliency=saliency).index.tolist() == [3, 4, 5]
    # a budget that is no whole number of rows is filled up from the next row
    assert select("fopru", keep=4, strategy="row", grid=(1, 3, 3), saliency=saliency).index.tolist() == [2, 3, 4, 5]
    with pytest.raises(BadInput, match=r"needs the grid"):
        select("fopru", keep=3, strategy="row", saliency=saliency)
    with pytest.raises(BadInput, match=r"a grid of 1 x 2 x 3 has 6 tokens, but there are 9"):
        select("fopru", keep=3, strategy="row", grid=(1, 2, 3), saliency=saliency)


def test_random_follows_its_seed_alone():
    x = torch.zeros(50, 2)
    a, b = (select("random", keep=10, seed=s, features=x).index.tolist() for s in (0, 1))
    torch.manual_seed(99)
    assert select("random", keep=10, seed=0, features=x).index.tolist() == a != b


def test_uniform_is_even():
    assert select("uniform", keep=3, features=torch.zeros(9, 1)).index.tolist() == [1, 4, 7]


def test_apply_gathers_and_merges():
    x = torch.arange(12.0).reshape(6, 2)
    picked = select("uniform", keep=2, features=x)
    assert torch.equal(picked.apply(x), x[picked.index])
    assert torch.equal(picked.apply(x[:, 0]), x[picked.index, 0])
    merged = tokenprune.Selection(torch.tensor([0, 5]), weights=torch.full((2, 6), 1 / 6))
    torch.testing.assert_close(merged.apply(x), x.mean(0).expand(2, -1))
    batch = select("uniform", keep=2, features=x.expand(3, -1, -1))
    assert batch.apply(x.expand(3, -1, -1)).shape == (3, 2, 2)
    with pytest.raises(BadInput, match=r"x has shape \[4, 6, 2\], which does not fit"):
        batch.apply(torch.zeros(4, 6, 2))


def naive_max_min(distance, k):
    """Re-reads all chosen rows at each pick."""
    n = len(distance)
    nearest = [min((distance[i, j] for j in range(n) if j != i), default=0.0) for i in range(n)]
    chosen = [max(range(n), key=lambda i: nearest[i])]
    while len(chosen) < k:
        left = [i for i in range(n) if i not in chosen]
        chosen.append(max(left, key=lambda i: min(distance[i, j] for j in chosen)))
    return chosen


@pytest.mark.laws
@pytest.mark.parametrize("n", [1, 2, 3, 17, 31])
def test_primitives_equal_their_plain_reference(n, monkeypatch):
    """Law 10, for the operations there are so far, on odd sizes and with uninitialised memory full of NaN."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    made = torch.Generator().manual_seed(n)
    points = torch.randn(3, n, 5, dtype=torch.float64, generator=made)
    distance = torch.cdist(points, points)
    for k in {1, (n + 1) // 2, n}:
        assert max_min(distance, k).tolist() == [naive_max_min(d, k) for d in distance]
        scores = torch.randint(0, 4, (3, n), generator=made)
        best = [sorted(sorted(range(n), key=lambda i: (-row[i], i))[:k]) for row in scores.tolist()]
        assert top_k(scores, k).tolist() == best


WRONG = {
    "keep=0.0": (
        {"keep": 0.0},
        "keep=0.0 keeps nothing. A float is a fraction of the tokens and must be above 0; to drop them all, give the "
        "int 0.",
    ),
    "negative": (
        {"keep": -0.5},
        "keep=-0.5 keeps nothing. A float is a fraction of the tokens and must be above 0; to drop them all, give the "
        "int 0.",
    ),
    "negative int": ({"keep": -3}, "keep=-3 is below 0. An int is a number of tokens; 0 drops them all."),
    "nan": (
        {"keep": float("nan")},
        "keep=nan is not a number. Give a fraction such as 0.1 or a token count such as 58.",
    ),
    "above 1": (
        {"keep": 1.5},
        "keep=1.5 is above 1. A float is a fraction of the tokens, at most 1.0; for a token count give an int.",
    ),
    "above n": ({"keep": 10}, "keep=10 is more than the 9 visual tokens there are. Lower it, or give a fraction."),
    "text": (
        {"keep": "half"},
        "keep='half' is not a number. Give a fraction such as 0.1 or a token count such as 58.",
    ),
    "bool": ({"keep": True}, "keep=True is not a number. Give a fraction such as 0.1 or a token count such as 58."),
    "option": ({"sed": 3}, "Unknown signal or option of random 'sed'. Did you mean 'seed'?"),
    "type": ({"seed": 0.5}, "seed=0.5 of random must be a whole number."),
}


@pytest.mark.parametrize("method", NAMES)
def test_keep_none_of_them(method):
    """keep=0 drops every token, whatever the method."""
    assert select(method, keep=0, grid=(1, 3, 3), **signals(9)).index.shape == (0,)


@pytest.mark.parametrize("case", WRONG)
def test_bad_arguments(case):
    options, message = WRONG[case]
    with pytest.raises(BadInput) as error:
        select("random", **({"keep": 2} | options), features=torch.zeros(9, 1))
    assert str(error.value) == message


def test_bad_names_and_signals():
    x = torch.zeros(9, 2)
    with pytest.raises(BadInput) as error:
        select("divprun", keep=2, features=x)
    assert str(error.value) == "Unknown method 'divprun'. Did you mean 'divprune'?"
    with pytest.raises(BadInput) as error:
        select("zzz", keep=2, features=x)
    assert str(error.value) == f"Unknown method 'zzz'. Known: {', '.join(all_methods())}."
    with pytest.raises(BadInput) as error:
        select("fopru", keep=2, saliency=torch.zeros(9), strategy="rows")
    assert str(error.value) == "Unknown strategy of fopru 'rows'. Did you mean 'row'?"
    with pytest.raises(MissingSignal) as error:
        select("fastv", keep=2, features=x)
    assert str(error.value).startswith("The signal 'attention_row' ([H, n] last prompt token")
    with pytest.raises(BadInput, match=r"No signals\. random needs the number of tokens"):
        select("random", keep=2)
    with pytest.raises(BadInput, match="features holds NaN or infinite values"):
        select("divprune", keep=2, features=x / 0)
    with pytest.raises(BadInput, match=r"features \[9\] does not fit: expected \[n, d\]"):
        select("divprune", keep=2, features=torch.zeros(9))


def test_a_large_product_is_that_of_its_rows():
    """On a CPU only one half is computed from 1,024 tokens on."""
    x = torch.randn(2, 1300, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(products(x), x @ x.mT, atol=1e-12, rtol=0)
    assert torch.equal(products(x), products(x).mT)
    distance = cosine_distance(x.float())
    before = distance.clone()
    far = distance.masked_fill(torch.eye(1300, dtype=torch.bool), float("inf"))
    assert torch.equal(nearest(distance), far.amin(-1))
    assert torch.equal(distance, before)
