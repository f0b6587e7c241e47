"""Every Triton kernel equals its plain PyTorch reference: odd sizes, every dtype, memory poisoned beforehand.

On a machine without a GPU Triton's interpreter runs them (`conftest.py` turns it on), and compiling for real GPUs is
tested by itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

import tokenprune
from tests.draw import cases
from tests.tiny import FAMILIES, Picture
from tokenprune_kernels import attention, density, dispatch, distance, greedy, prediction, retention, selection

pytest.importorskip("triton", reason="needs Triton: pip install 'tokenprune[kernels]'")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
PAD = 64  # poisoned elements on either side of every input


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def poisoned(x):
    """The same tensor inside a larger buffer that is full of NaN (of the largest integers)."""
    poison = float("nan") if x.is_floating_point() else True if x.dtype == torch.bool else torch.iinfo(x.dtype).max
    whole = torch.full((x.numel() + 2 * PAD,), poison, dtype=x.dtype, device=DEVICE)
    inner = whole[PAD:-PAD].view(x.shape)
    return inner.copy_(x)


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch):
    """Memory that a kernel gets for its result holds NaN, or nonsense, where it does not write."""
    empty, new_empty = torch.empty, torch.Tensor.new_empty

    def spoilt(x):
        return x.fill_(float("nan") if x.is_floating_point() else 77)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: spoilt(empty(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: spoilt(new_empty(self, *a, **k)))


@pytest.fixture
def both(monkeypatch):
    """Runs an operation by its reference and by its kernel."""

    def run(operation, *arguments, **options):
        found = []
        for side in dispatch.SIDES:
            monkeypatch.setenv(dispatch.SWITCH, side)
            found.append(operation(*arguments, **options))
        return found

    return run


def every(names, *axes):
    """The product of what an operation is tried on; the gate draws for each of the last axis, the sizes."""
    found = [case if len(axes) > 1 else case[0] for case in product(*axes)]
    return cases(names, found, lambda *case: str(case[1:] and case[-1]))


def same(a, b, **tolerance):
    torch.testing.assert_close(a, b, equal_nan=True, **tolerance or {"rtol": 0, "atol": 0})


@every(
    "dtype, sizes",
    [*FLOATS, torch.float64, torch.int64, torch.int32, torch.bool],
    [(1, 1, 1), (3, 17, 5), (2, 576, 58), (1, 130, 130), (2, 33, 0)],
)
def test_top_k(both, dtype, sizes):
    spans, n, k = sizes
    scores = (4 * torch.randn(spans, n, generator=seeded())).to(dtype)  # small integers and halves: many ties
    want, got = both(selection.top_k, poisoned(scores), k)
    same(got, want)
    counts = torch.arange(spans, device=DEVICE) % (k + 1)
    want, got = both(selection.top_k, poisoned(scores), k, poisoned(counts))
    same(got, want)


@every("dtype", [torch.float32, torch.float64, torch.float16])
def test_top_k_of_odd_values(both, dtype):
    inf, nan = float("inf"), float("nan")
    scores = torch.tensor([[0.0, -0.0, nan, -inf, inf, 1e-40, -1e-40, 0.0, -0.0, 3, -3, nan, -inf]], dtype=dtype)
    for k in range(scores.shape[1] + 1):
        want, got = both(selection.top_k, poisoned(scores), k)
        same(got, want)


def test_top_k_of_more_than_a_block(both):
    scores = torch.randint(0, 50, (2, 9001), generator=seeded())
    for k in (1, 4500, 9001):
        want, got = both(selection.top_k, poisoned(scores.float()), k)
        same(got, want)


def kept(batch, length, seed=0):
    """A ragged mask, and the most that stay in a row."""
    keep = torch.rand(batch, length, generator=seeded(seed)) < torch.linspace(0.2, 0.9, batch)[:, None]
    return keep, int(keep.sum(1).max())


@every("dtype, sizes", [*FLOATS, torch.float64], [(1, 1, 8), (3, 37, 7), (2, 201, 130), (4, 64, 513)])
def test_close_rows(both, dtype, sizes):
    batch, length, width = sizes
    keep, most = kept(batch, length)
    inputs = [
        torch.randn(batch, length, width).to(dtype),  # hidden states
        torch.randn(1, length, 6),  # cos, shared by the rows
        torch.randint(0, 99, (batch, length)),  # position ids
        torch.rand(batch, length) < 0.5,  # a mask
        torch.randn(batch, length, 3, 5).to(dtype),
    ]
    want, got = both(selection.close_rows, poisoned(keep), most, [poisoned(x) for x in inputs])
    for a, b in zip(got, want, strict=True):
        same(a, b)


def test_close_rows_of_strided_rows(both):
    keep, most = kept(2, 21)
    wide = poisoned(torch.randn(2, 21, 40))
    views = [wide[..., 3:20], wide.unflatten(2, (5, 8)).transpose(2, 3), wide[..., 1], wide[:1].expand(2, -1, -1)]
    want, got = both(selection.close_rows, keep.to(DEVICE), most, views)
    for a, b in zip(got, want, strict=True):
        same(a, b)


def test_close_rows_alone_and_with_room_to_spare(both):
    keep = torch.tensor([[True, False, True, False], [False, False, False, False]], device=DEVICE)
    for width in (2, 3, 4):
        want, got = both(selection.close_rows, keep, width, [])
        same(got[0], want[0])
    assert both(selection.close_rows, keep, 3, [])[1][0].tolist() == [[3, 0, 2], [1, 2, 3]]


@every(
    "dtype, softcap, sizes",
    FLOATS,
    [0.0, 1.5],
    [
        ((4, 4), False, 1, 1, 8),
        ((6, 2), True, 3, 65, 20),
        ((7, 1), False, 3, 65, 20),
        ((4, 2), True, 17, 130, 64),
        ((5, 5), True, 2, 700, 16),
        ((20, 1), False, 2, 600, 16),
    ],
)
def test_row_attention(both, dtype, softcap, sizes):
    heads, mean, m, keys, width = sizes
    made = seeded(keys)
    query = poisoned(torch.randn(2, heads[0], keys + 2, width, generator=made).to(dtype))
    key = poisoned(torch.randn(2, keys, heads[1], width, generator=made).to(dtype)).transpose(1, 2)
    rows = poisoned(torch.randint(0, keys + 2, (2, m), generator=made))
    visible = torch.rand(2, m, keys, generator=made) < 0.7
    visible[1, 0] = False
    want, got = both(attention.row_attention, query, key, rows, poisoned(visible), 0.3, softcap, mean)
    same(got, want, rtol=1e-4, atol=1e-5)


@every("dtype, sums, sizes", [torch.float32, torch.float64], [False, True], [(1, 1, 1), (3, 17, 17), (2, 200, 50)])
def test_greedy(both, dtype, sums, sizes):
    spans, n, k = sizes
    x = torch.randn(spans, n, 5, generator=seeded(), dtype=dtype)
    x[:, n // 2 :] = x[:, : n - n // 2]  # duplicates: ties everywhere
    distance = torch.cdist(x, x)
    start = distance.sum(-1)
    want, got = both(greedy.greedy, poisoned(distance), k, poisoned(start), sums)
    same(got, want)
    assert all(len(set(row.tolist())) == k for row in got)


@pytest.mark.parametrize("m", [1, 4])
def test_greedy_behind_seeds(both, m):
    x = torch.randn(3, 40, 4, generator=seeded())
    distance = torch.cdist(x, x)
    seeds = torch.stack([torch.randperm(40, generator=seeded(i))[:m] for i in range(3)])
    start = torch.zeros(3, 40, device=DEVICE)
    want, got = both(greedy.greedy, poisoned(distance), 20, start, False, poisoned(seeds))
    same(got, want)
    assert not (got[:, :, None].cpu() == seeds[:, None]).any()


@pytest.mark.parametrize("rank", [3, 60])
def test_greedy_dpp(both, rank):
    x = torch.randn(2, 50, rank, generator=seeded(), dtype=torch.float64)
    fallback = torch.rand(2, 50, generator=seeded(1), dtype=torch.float64)
    want, got = both(greedy.greedy_dpp, poisoned(x @ x.mT), 20, poisoned(fallback), 1e-9)
    same(got, want)


@every("holes, sizes", [False, True], [(1, 1, 4), (3, 21, 4), (2, 197, 7), (2, 5, 9)])
def test_peak_scores(both, holes, sizes):
    spans, n, neighbours = sizes
    x = torch.randn(spans, n, 6, generator=seeded(), dtype=torch.float64)
    x[:, n // 2] = x[:, 0]  # duplicates
    distance = torch.cdist(x, x)
    there = None
    if holes:
        there = torch.rand(spans, n, generator=seeded(1)) < 0.6
        there[0] = False
        there = poisoned(there)
    want, got = both(density.peak_scores, poisoned(distance), neighbours, there)
    same(got, want, rtol=1e-12, atol=0)


@every("dtype, sizes", FLOATS, [(1, 1, 1), (2, 33, 70), (1, 130, 64), (3, 129, 200)])
def test_cosine_distance(both, dtype, sizes):
    spans, n, d = sizes
    x = torch.randn(spans, n, d, generator=seeded()).to(dtype)
    x[:, n // 2] = 0
    want, got = both(distance.cosine_distance, poisoned(x))
    assert got.dtype == want.dtype
    same(got, want, rtol=0, atol=2e-6)


@every("metric, sizes", prediction.METRICS, [(1, 1, 1, 3), (2, 5, 7, 12), (3, 1, 9, 5), (1, 8, 1, 5), (1, 13, 6, 4100)])
def test_predict_anchored(both, metric, sizes):
    spans, h, w, values = sizes
    ground = torch.randint(0, 3, (spans, h, w, 1), generator=seeded()).float()  # three flats, and how far they stray
    x = 0.3 * ground + 0.04 * torch.rand(spans, h, w, values, generator=seeded(1))
    for tau in (0.02, 0.05, 0.4):
        want, got = both(prediction.predict_anchored, poisoned(x), tau, metric)
        assert got.dtype == want.dtype == torch.long
        same(got, want)


@every("dtype, sizes", FLOATS, [(1, 8), (19, 20), (33, 64)])
def test_gather_cache(both, dtype, sizes):
    k, width = sizes
    keys = poisoned(torch.randn(2, 40, 3, width, generator=seeded()).to(dtype)).transpose(1, 2)
    values = poisoned(torch.randn(2, 3, 40, width + 4, generator=seeded(1)).to(dtype))
    index = torch.stack([torch.randperm(40, generator=seeded(i))[:k].sort().values for i in range(2)])
    want, got = both(retention.gather_cache, keys, values, poisoned(index), 5)
    for a, b, x in zip(got, want, (keys, values), strict=True):
        assert a.shape == b.shape == (2, 3, k + 5, x.shape[3])
        same(a[:, :, :k], b[:, :, :k])


@pytest.mark.parametrize("side", dispatch.SIDES)
def test_gradients_pass_through(monkeypatch, side):
    monkeypatch.setenv(dispatch.SWITCH, side)
    keep, most = kept(2, 9)
    hidden = torch.randn(2, 9, 3, device=DEVICE, requires_grad=True)
    shared = torch.randn(1, 9, 2, device=DEVICE, requires_grad=True)
    take, rows, other = selection.close_rows(keep.to(DEVICE), most, [hidden, shared])
    (rows.sum() + 2 * other.sum()).backward()
    seen = torch.zeros(2, 9, device=DEVICE).scatter_add(1, take, torch.ones_like(take, dtype=torch.float32))
    same(hidden.grad, seen[..., None].expand(-1, -1, 3))
    same(shared.grad, 2 * seen.sum(0)[None, :, None].expand(-1, -1, 2))


SAMPLES = {
    "top_k": (selection.top_k, (torch.randn(2, 9), 4)),
    "top_k ragged": (selection.top_k, (torch.randn(2, 9), 4, torch.tensor([4, 2]))),
    "close_rows": (selection.close_rows, (torch.rand(2, 9) < 0.4, 9, [torch.randn(2, 9, 3), torch.arange(9)[None]])),
    "row_attention": (
        attention.row_attention,
        (torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.tensor([[4]]), torch.ones(1, 1, 5).bool(), 0.3),
    ),
    "greedy": (greedy.greedy, (torch.rand(1, 9, 9), 4, torch.rand(1, 9), False)),
    "greedy_dpp": (greedy.greedy_dpp, (torch.eye(9)[None], 4, torch.rand(1, 9))),
    "peak_scores": (density.peak_scores, (torch.rand(2, 9, 9), 3)),
    "cosine_distance": (distance.cosine_distance, (torch.randn(2, 9, 4),)),
    "predict_anchored": (prediction.predict_anchored, (torch.rand(2, 4, 3, 5), 0.4, "max")),
    "gather_cache": (
        retention.gather_cache,
        (torch.randn(1, 2, 9, 4), torch.randn(1, 2, 9, 4), torch.tensor([[0, 4]]), 0),
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_torch_compile_sees_every_operation(name):
    """Registered as the library wants it, and traced as one call."""
    operation, arguments = SAMPLES[name]
    torch.library.opcheck(operation, arguments)
    torch._dynamo.reset()
    traced = torch.compile(operation, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.utils._pytree.tree_leaves(traced(*arguments)), leaves(operation(*arguments)), strict=True):
        same(a, b)


def leaves(x):
    return torch.utils._pytree.tree_leaves(x)


def test_the_switch_refuses_what_it_cannot_do(monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "tritn")
    with pytest.raises(tokenprune.BadInput, match=r"TOKENPRUNE_KERNELS.*triton"):
        tokenprune.select("divprune", keep=2, features=torch.randn(9, 4))
    monkeypatch.setenv(dispatch.SWITCH, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(tokenprune.BadInput, match="Move the model to a GPU"):
        dispatch.side("cpu")
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    with pytest.raises(tokenprune.BadInput, match=r"pip install 'tokenprune\[kernels\]'"):
        dispatch.side("cuda")
    monkeypatch.delenv(dispatch.SWITCH)
    assert dispatch.side("cuda") == "reference"
    assert dispatch.side("cpu") == "reference"


METHODS = {
    "fastv": {"keep": 0.3},
    "divprune": {"keep": 0.3},
    "cdpruner": {"keep": 0.3},
    "visionzip": {"keep": 0.3},
    "sparsevlm": {"keep": 0.3},
}


@every("method", METHODS)
def test_a_pruned_model_is_the_same_on_either_side(both, method):
    model = FAMILIES["llava_next"].build().to(DEVICE)
    inputs = FAMILIES["llava_next"].inputs([[3, Picture(4, 6), 4], [Picture(3, 4), Picture(4, 3), 6]])
    inputs = {name: value.to(DEVICE) for name, value in inputs.items()}

    def run():
        with tokenprune.prune(model, method, **METHODS[method]) as active, torch.no_grad():
            logits = model(**inputs).logits
        return logits, [row for stage in active.kept for row in stage]

    (want, kept_by_reference), (got, kept_by_kernels) = both(run)
    assert [row.tolist() for row in kept_by_kernels] == [row.tolist() for row in kept_by_reference]
    same(got, want, rtol=1e-4, atol=1e-5)


COMPILE = Path(__file__).parent / "compiled_kernels.py"


@pytest.mark.nightly
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_real_gpus(capability):
    """Ahead of time and without one; in a process of its own, where Triton does not interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, COMPILE, str(capability)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
