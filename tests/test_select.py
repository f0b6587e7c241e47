"""`tokenprune.select`: golden vectors of the published implementations, edges, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenprune
from tokenprune import BadInput, MissingSignal, select
from tokenprune.core.selection import max_min, top_k
from tokenprune.methods.registry import all_methods

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.golden
@pytest.mark.parametrize("name", ["fastv_r50_576", "fastv_edge_halfeven_n10"])
def test_fastv_golden(name):
    data = np.load(GOLDEN / f"{name}.npz")
    start, n = int(data["image_start"]), int(data["n_image"])
    row = torch.from_numpy(data["attn_last_row"])[:, start : start + n]
    keep = 1 - float(data["prune_ratio_r"])
    index = select("fastv", keep=keep, attention_row=row).index
    assert index.tolist() == sorted(data["topk_image_index_by_score"].tolist())
    torch.testing.assert_close(row.float().mean(0), torch.from_numpy(data["score_image"]).float(), atol=1e-5, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["divprune_rand640", "divprune_clusters300"])
def test_divprune_golden(name, dtype):
    data = np.load(GOLDEN / f"{name}.npz")
    x = torch.from_numpy(data["x"]).to(dtype)
    assert select("divprune", keep=float(data["ratio"]), features=x).index.tolist() == data["kept_sorted"].tolist()
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    order = max_min((1 - unit @ unit.T)[None], len(data["kept_order"]))
    assert order[0].tolist() == data["kept_order"].tolist()


def signals(n, spans=None, seed=0):
    made = torch.Generator().manual_seed(seed)
    front = () if spans is None else (spans,)
    return {
        "features": torch.randn(*front, n, 8, generator=made),
        "saliency": torch.rand(*front, n, generator=made),
        "attention_row": torch.rand(*front, 3, n, generator=made),
    }


@given(method=st.sampled_from(list(all_methods())), n=st.integers(1, 40), data=st.data())
def test_every_method_keeps_exactly_k_unique_ascending(method, n, data):
    """Law 5, on spans alone: ties, duplicates, k = n, k = 1 and one token included."""
    keep = data.draw(st.one_of(st.integers(1, n), st.floats(0.01, 1.0)))
    given_signals = signals(n, spans=data.draw(st.sampled_from([None, 1, 3])), seed=n)
    if data.draw(st.booleans()):
        given_signals = {name: torch.zeros_like(value) for name, value in given_signals.items()}
    state = torch.get_rng_state()
    index = select(method, keep=keep, **given_signals).index
    assert torch.equal(torch.get_rng_state(), state)
    k = keep if isinstance(keep, int) else max(1, round(n * keep))
    assert index.dtype == torch.long
    assert index.shape[-1] == k
    assert (index.diff(dim=-1) > 0).all()
    assert index.min() >= 0
    assert index.max() < n


@pytest.mark.parametrize("method", list(all_methods()))
def test_stacked_spans_equal_spans_alone(method):
    stacked = signals(30, spans=4)
    together = select(method, keep=0.3, **stacked).index
    for i in range(4):
        assert torch.equal(together[i], select(method, keep=0.3, **{k: v[i] for k, v in stacked.items()}).index)


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
    with pytest.raises(BadInput, match=r"whole 1 x 2 x 3 grid, but 9 tokens are left"):
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


@pytest.mark.parametrize("method", all_methods())
def test_keep_none_of_them(method):
    """keep=0 drops every token, whatever the method."""
    signals = {"features": torch.randn(9, 4), "saliency": torch.rand(9), "attention_row": torch.rand(2, 9)}
    assert select(method, keep=0, grid=(1, 3, 3), **signals).index.shape == (0,)


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
    assert str(error.value) == "Unknown method 'zzz'. Known: divprune, fastv, fopru, random, uniform."
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
    with pytest.raises(BadInput, match="The signals disagree on the number of tokens"):
        select("divprune", keep=2, features=x, saliency=torch.zeros(8))
    with pytest.raises(BadInput, match=r"The shapes of features\[9\] do not fit"):
        select("divprune", keep=2, features=torch.zeros(9))
