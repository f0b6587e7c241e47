"""Every Triton kernel against its PyTorch reference on a GPU, at the sizes of a 7B model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from eval.bench.bars import Bar
from tokenprune.bench.compare import Spread
from tokenprune.core.diversity import cosine_distance, max_min
from tokenprune_kernels import attention, density, dispatch, distance, greedy, prediction, retention, selection

Work = Callable[[], Any]


@contextmanager
def on(side: str) -> Iterator[None]:
    """Operations run on one side."""
    before = os.environ.get(dispatch.SWITCH)
    os.environ[dispatch.SWITCH] = side
    try:
        yield
    finally:
        os.environ.pop(dispatch.SWITCH)
        if before is not None:
            os.environ[dispatch.SWITCH] = before


REPLAYS = 10


def milliseconds(work: Work) -> float:
    """Time of one call on the device, what the host takes to launch it included."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def record_graph(work: Work) -> Work:
    """The same work as a graph of its launches, which are then replayed without the host: `REPLAYS` in a row."""
    work()  # compiles
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(REPLAYS):
            work()
    return graph.replay


def cases() -> dict[str, Work]:
    """Operations at the sizes of a 7B model."""
    made = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=made).to(dtype)

    half = torch.bfloat16
    scores = random(8, 6272)
    keep = torch.zeros(8, 6308, dtype=torch.bool, device="cuda")
    keep[:, ::10] = True
    hidden, cos, ids = random(8, 6308, 3584, dtype=half), random(8, 6308, 128, dtype=half), keep.long().cumsum(1)
    width = int(keep[0].sum())
    query, key = random(1, 28, 6308, 128, dtype=half), random(1, 4, 6308, 128, dtype=half)
    rows = torch.full((1, 1), 6307, device="cuda")
    visible = torch.ones(1, 1, 6308, dtype=torch.bool, device="cuda")
    features = random(1, 2880, 3584, dtype=half)
    far = cosine_distance(features)
    start = far.sum(-1)
    frames = torch.cdist(random(32, 196, 64), random(32, 196, 64))
    keys, values = (random(1, 4, 16384, 128, dtype=half) for _ in range(2))
    index = torch.arange(0, 16384, 10, device="cuda")[None]
    page = torch.full((1, 64, 64, 3072), 0.9, device="cuda")
    page[:, 20:40, 8:56] = torch.rand(1, 20, 48, 3072, device="cuda")
    return {
        "top_k n=6272 k=627 batch=8": lambda: selection.top_k(scores, 627),
        "compact 6308 to 631 x 3584 batch=8": lambda: selection.close_rows(keep, width, [hidden, cos, cos, ids, keep]),
        "row_attention 28 heads 6308 keys": lambda: attention.row_attention(query, key, rows, visible, 0.09, mean=True),
        "greedy n=2880 k=288": lambda: greedy.greedy(far, 288, start, False),
        "greedy_dpp n=2880 k=288": lambda: greedy.greedy_dpp(1 - far, 288, start),
        "peak_scores 32 x 196": lambda: density.peak_scores(frames, 4),
        "cosine_distance n=2880": lambda: distance.cosine_distance(features),
        "predict_anchored 64 x 64 x 3072": lambda: prediction.predict_anchored(page, 0.05, "max"),
        "gather_cache 16384 to 1639": lambda: retention.gather_cache(keys, values, index, 64),
    }


def measure(console: Console, rounds: int = 20) -> dict[str, Any]:
    """Milliseconds of both sides by turns, on the device alone and with the host's part, and what the bars need."""
    found: dict[str, Any] = {}
    for name, work in cases().items():
        found[name] = _compared(work, rounds)
        console.print(f"{name}: reference / Triton {Spread(**found[name]['speedup'])}")
    source = torch.randn(8, 631, 3584, device="cuda", dtype=torch.bfloat16)
    copy = record_graph(source.clone)
    found["copy bound of compact, ms"] = vars(Spread.of([milliseconds(copy) / REPLAYS for _ in range(rounds)]))
    features = torch.randn(1, 2880, 3584, device="cuda", dtype=torch.bfloat16)
    choosing = [milliseconds(lambda: max_min(cosine_distance(features), 288)) for _ in range(rounds)]
    found["max-min selection n=2880 k=288, ms"] = vars(Spread.of(choosing[3:]))
    return found


def _compared(work: Work, rounds: int) -> dict[str, Any]:
    graphs = {}
    for side in dispatch.SIDES:
        with on(side):
            graphs[side] = record_graph(work)
    alone: dict[str, list[float]] = {side: [] for side in dispatch.SIDES}
    called: dict[str, list[float]] = {side: [] for side in dispatch.SIDES}
    for turn in range(rounds + 3):
        for side in dispatch.SIDES:
            with on(side):
                times = milliseconds(graphs[side]) / REPLAYS, milliseconds(work)
            if turn >= 3:
                alone[side].append(times[0])
                called[side].append(times[1])
    return {
        **{side: vars(Spread.of(times)) for side, times in alone.items()},
        "speedup": vars(Spread.of([a / b for a, b in zip(*alone.values(), strict=True)])),
        "with the host": {side: vars(Spread.of(times)) for side, times in called.items()},
    }


def bars(found: dict[str, Any]) -> list[Bar]:
    """Selection by max-min at most 2 ms, the gather within 1.3 x of a copy, every kernel faster than its reference."""
    chosen = found["max-min selection n=2880 k=288, ms"]
    result = [Bar("max-min selection, ms", "n=2880 k=288", *chosen.values(), 2.0, True)]
    moved, copied = (next(v for k, v in found.items() if k.startswith(name)) for name in ("compact", "copy bound"))
    ratio = moved["triton"]["median"] / copied["median"]
    result.append(Bar("gather over copy", "6308 to 631 x 3584, batch 8", ratio, ratio, ratio, 1.3, True))
    for name, one in found.items():
        if "speedup" in one:
            result.append(Bar("kernel against its reference", name, *one["speedup"].values(), 1.0, False))
    return result
