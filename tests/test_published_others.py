"""Baselines, and methods of which little is published, against what their files say, computed here in plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenprune import FastOCR, select


def made(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def highest(scores, k):
    """The k highest, of equal ones the first, in ascending order."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])


@pytest.mark.parametrize("n", [1, 2, 7, 12, 31])
def test_uniform(n):
    """Of k stretches of n / k tokens, the token that holds the middle of each."""
    for k in range(1, n + 1):
        found = select("uniform", keep=k, features=torch.zeros(n, 1)).index.tolist()
        middles = [(i + 0.5) * n / k for i in range(k)]
        assert all(token <= middle + 1e-9 and middle <= token + 1 for token, middle in zip(found, middles, strict=True))


def test_random():
    """Every token, and every two of them, are kept equally often."""
    n, k, seeds = 12, 4, 600
    kept = np.zeros((seeds, n))
    for seed in range(seeds):
        kept[seed, select("random", keep=k, seed=seed, features=torch.zeros(n, 1)).index.numpy()] = 1
    alone, together = kept.mean(0), (kept.T @ kept / seeds)[~np.eye(n, dtype=bool)]
    assert abs(alone - k / n).max() < 5 * (k / n * (1 - k / n) / seeds) ** 0.5
    pair = k * (k - 1) / (n * (n - 1))
    assert abs(together - pair).max() < 5 * (pair * (1 - pair) / seeds) ** 0.5


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 5, 8), (1, 1, 9), (3, 3, 4)])
def test_downsample(shape):
    """Cells are rectangles of nearly equal size that cover the grid; each is its mean, at the token in its middle."""
    t, h, w = shape
    n = t * h * w
    x = made(n, 3)
    for k in range(t, n):
        found = select("downsample", keep=k, grid=shape, features=x)
        weights = found.weights.double().numpy()
        cells = [np.flatnonzero(row) for row in weights]
        heights: dict[int, list[int]] = {}
        assert sorted(np.concatenate(cells)) == list(range(n))
        for cell, row, token in zip(cells, weights, found.index.tolist(), strict=True):
            frame, rows, columns = np.unravel_index(cell, shape)
            assert len({*frame}) == 1
            assert len(cell) == len({*rows}) * len({*columns}) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            np.testing.assert_allclose(row[cell], 1 / len(cell), rtol=1e-6)
            far = abs(rows - rows.mean()) + abs(columns - columns.mean())
            assert far[list(cell).index(token)] <= far.min() + 1e-6
            heights.setdefault(frame[0], []).append(np.ptp(rows))
        assert len(heights) == t
        assert all(np.ptp(own) <= 1 for own in heights.values())
        np.testing.assert_allclose(found.apply(x.float()), [x[cell].numpy().mean(0) for cell in cells], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_fastocr(dtype):
    """The int(n keep) tokens with the largest mean over heads; focal layers from a fifth of the depth on, evenly."""
    for n, keep in ((40, 0.05), (33, 0.3), (7, 0.5)):
        row = made(4, n, seed=n).to(dtype)
        scores = row.double().numpy().mean(0)
        assert select("fastocr", keep=keep, attention_row=row).index.tolist() == highest(scores, max(1, int(n * keep)))
    starts = [place.start for place, _ in FastOCR().schedule(30)]
    assert starts[0] == 6
    assert np.ptp(np.diff(starts)) <= 1
    assert starts[-1] + np.diff(starts)[-1] >= 29


def coarse_to_fine(paid, sides, tiles, k, threshold):
    """One picture: base image (h, w), then a grid of tiles (rows, columns), each as large as the base image."""
    (h, w), (rows, columns) = sides, tiles
    base = paid[: h * w]
    low, high = np.quantile(base, [0.05, 0.95])
    picked = [i for i in range(h * w) if (base[i] - low) / (high - low) > threshold]
    votes = [0] * (rows * columns)
    for i in picked:
        votes[int(i // w / h * rows) * columns + int(i % w / w * columns)] += 1

    def best(tokens):
        return sorted(tokens, key=lambda i: (-paid[i], i))

    order = best(picked)
    for tile in sorted(range(rows * columns), key=lambda tile: (-votes[tile], tile)):
        top, left = tile // columns * h, tile % columns * w
        own = [h * w + (top + y) * columns * w + left + x for y in range(h) for x in range(w)]
        order += best(own)
    order += best([i for i in range(h * w) if i not in picked])
    return sorted(order[:k])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(("sides", "tiles"), [((4, 4), (2, 2)), ((3, 4), (1, 2)), ((6, 4), (3, 2))])
def test_coarse_to_fine(sides, tiles, dtype):
    (h, w), (rows, columns) = sides, tiles
    grid = [(1, h, w), (1, rows * h, columns * w)]
    n = h * w * (1 + rows * columns)
    row = made(3, n, seed=h).to(dtype)
    paid = row.double().numpy().mean(0)
    for threshold in (0.2, 0.7):
        for k in (1, h * w // 2, n // 3, n - 1):
            found = select("coarse_to_fine", keep=k, threshold=threshold, grid=grid, attention_row=row).index
            assert found.tolist() == coarse_to_fine(paid, sides, tiles, k, threshold)
    alone = row[:, : h * w]
    found = select("coarse_to_fine", keep=3, grid=(1, h, w), attention_row=alone).index
    assert found.tolist() == highest(alone.double().numpy().mean(0), 3)
