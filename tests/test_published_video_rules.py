"""The other video methods against their published rules, computed here in float64 and plain loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.clips64 import KINDS, chosen, clip, clusters, cosine, highest, same, tensors
from tokenprune import select
from tokenprune.methods.base import View
from tokenprune.methods.dycoke import DyCoke
from tokenprune.methods.framefusion import FrameFusion, FrameFusionLater

SIZES = [(8, 12), (10, 9), (7, 10), (5, 8), (2, 12), (1, 12)]
HALVES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def batch(kind, t, n, dtype=torch.float64):
    return tensors([clip(kind, t, n, seed=1), clip("scenes", t, n, seed=2)], dtype)


def dycoke(x, pruned):
    """Cells kept of one clip; a frame that the published code drops (the last of an odd number) is compared too."""
    count, size, _ = x.shape
    kept = []
    for t in range(count):
        against = {0: None, 1: t - 1, 2: t - 2, 3: t - 1}[t % 4]
        if t % 4 == 2 and t + 2 >= count:
            against = None  # only groups that begin more than four frames before the end have it compared
        new = [-cosine(x[t, j], x[against, j]) for j in range(size)] if against is not None else []
        kept += [t * size + j for j in (range(size) if against is None else highest(new, int(size * pruned)))]
    return sorted(kept)


@pytest.mark.parametrize("dtype", HALVES)
def test_dycoke(dtype):
    for t, n in [(8, 12), (9, 9), (10, 9), (11, 10), (12, 7), (6, 8), (2, 12), (1, 12)]:
        for kind in ("scenes", "random"):
            x, rows = batch(kind, t, n, dtype)
            for pruned in (0.3, 0.5):
                method = DyCoke(keep=None, changed=pruned, last="whole")
                found = select(method, features=x, grid=(t, 1, n))
                assert [chosen(found, i, x)[0].tolist() for i in (0, 1)] == [dycoke(one, pruned) for one in rows]


def vidcom2(x, keep):
    """Cells kept of one clip."""
    count, size, d = x.shape
    flat = x.reshape(-1, d)
    quiet = np.sort(np.argsort(flat.var(0), kind="stable")[: d // 2])
    unit = flat[:, quiet]
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True).clip(min=1e-12)
    frames = unit.reshape(count, size, -1)

    def likeness(token, centre):
        return sum(np.exp(-((token - centre) ** 2).sum() / (2 * 2.0**k)) for k in (-3, -2, -1, 0, 1))

    whole = np.array([[likeness(token, unit.mean(0)) for token in frame] for frame in frames])
    own = np.array([[likeness(token, frame.mean(0)) for token in frame] for frame in frames])
    unique = -whole.mean(1) / 0.01
    part = np.exp(unique - unique.max())
    part /= part.sum()
    kept = []
    for t in range(count):
        number = max(1, round(min(1, keep * (1 + part[t] - 1 / count)) * size))
        kept += [t * size + j for j in highest(-(whole + own)[t], number)]
    return sorted(kept)


@pytest.mark.parametrize("kind", KINDS)
def test_vidcom2(kind):
    for t, n in SIZES:
        for dtype in HALVES:
            x, rows = batch(kind, t, n, dtype)
            found = select("vidcom2", keep=0.23, fill="none", features=x, grid=(t, 1, n))
            assert [chosen(found, i, x)[0].tolist() for i in (0, 1)] == [vidcom2(one, 0.23) for one in rows]


@pytest.mark.parametrize("kind", ["scenes", "random", "collapsed"])
def test_evs(kind):
    """A whole frame at least; tokens that are zero have no direction, and count as new."""
    for t, n in SIZES:
        x, rows = batch(kind, t, n)
        x[0, n : n + 2] = 0
        rows[0].reshape(t * n, -1)[n : n + 2] = 0
        for keep in (0.04, 0.25, 0.6):
            found = select("evs", keep=keep, least="frame", features=x, grid=(t, 1, n))
            for i, one in enumerate(rows):
                change = [255.0] * n
                change += [1 - cosine(one[s, j], one[s - 1, j]) for s in range(1, t) for j in range(n)]
                order = highest(change, max(n, int(t * n * keep)))
                assert chosen(found, i, x)[0].tolist() == sorted(order.tolist())


def windows(means):
    """First and last + 1 of the windows of PruneVid, by labels."""
    count = len(means)
    members = clusters(means, max(1, int(count * 0.25)), 7)
    label = [next(c for c, group in members.items() if t in group) for t in range(count)]

    def runs():
        starts = [t for t in range(count) if t == 0 or label[t] != label[t - 1]]
        return list(zip(starts, [*starts[1:], count], strict=True))

    first_runs, old = runs(), list(label)
    for a, b in first_runs:
        longest = max(y - x for x, y in first_runs if old[x] == old[a])
        if b - a < longest or longest == 1:
            label[a:b] = [None] * (b - a)
    for a, b in runs():
        if label[a] is None:
            sides = [run for run in runs() if run[1] == a] + [run for run in runs() if run[0] == b]
            label[a:b] = [label[max(sides, key=lambda run: run[1] - run[0])[0]] if sides else 0] * (b - a)
    return runs()


def prunevid(x, threshold):
    """{cell: row} of one clip [T, N, d]."""
    size, kept = x.shape[1], {}
    for first, last in windows(x.mean(1)):
        w = last - first
        pairs = [(s, t) for s in range(first, last) for t in range(first, last) if s != t]
        static = [j for j in range(size) if w > 1 and np.mean([cosine(x[s, j], x[t, j]) for s, t in pairs]) > threshold]
        moving = [j for j in range(size) if j not in static]
        parts = [(first, static, x[first:last, static].mean(0))]
        for t, places, values in [*parts, *((t, moving, x[t, moving]) for t in range(first, last))]:
            groups = {i: [i] for i in range(len(places))}
            if len(places) > 14:
                groups = clusters(values, int(len(places) * 0.5), 7)
            kept |= {t * size + places[centre]: values[group].mean(0) for centre, group in groups.items()}
    return kept


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_prunevid(kind, dtype):
    """From 15 tokens on they are clustered."""
    for t, n in [(8, 18), (10, 31), (5, 15), (2, 16), (1, 20)]:
        x, rows = batch(kind, t, n, dtype)
        means = torch.tensor(np.stack([one.mean(1) for one in rows]))
        found = select("prunevid", threshold=0.7, features=x, frame_features=means, grid=(t, 1, n))
        same(found, [prunevid(one, 0.7) for one in rows], x)


def test_prunevid_keeps_all_longest_runs():
    """Runs of a cluster that are equally long all stay, and join where nothing longer stands between them."""
    a, b = np.array([1.0, 0.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0, 0.0])
    draw = np.random.default_rng(3)
    for order in ("aabaabbb", "aabbaabb", "abababab", "aaabaaab", "abbabbaa"):
        frames = np.stack([{"a": a, "b": b}[one] for one in order])[:, None] + draw.standard_normal((8, 4, 4)) * 0.01
        x, rows = tensors([frames])
        means = torch.tensor(rows[0].mean(1))
        found = select("prunevid", features=x[0], frame_features=means, grid=(8, 2, 2))
        index = found.index.numpy()
        assert index.tolist() == sorted(prunevid(rows[0], 0.8)), (order, windows(rows[0].mean(1)))


def test_prunevid_asks_the_question():
    """int(0.4 N) of every frame, by the highest attention of any head of any word of the text; one word too."""
    for words in (1, 5):
        paid = torch.rand(2, 3, words, 33, generator=torch.Generator().manual_seed(words), dtype=torch.float64)
        signals = {"text_attention": paid, "grid": (3, 1, 11), "keep": 0.4}
        found = select("prunevid_question", fill="none", **signals)
        best = paid.numpy().max((1, 2)).reshape(2, 3, 11)
        expected = [sorted(11 * t + int(j) for t in range(3) for j in highest(one[t], 4)) for one in best]
        assert found.index.tolist() == expected
        assert select("prunevid_question", **signals).index.shape == (2, 13)


def scissor(x, threshold):
    """{cell: row} of one clip [T, N, d]."""

    def components(rows):
        near = [[cosine(a, b) > threshold for b in rows] for a in rows]
        degree, left, found = [sum(row) for row in near], set(range(len(rows))), {}
        while left:
            reached, new = set(), [min(left)]
            while new:
                i = new.pop()
                reached.add(i)
                new += [j for j in range(len(rows)) if near[i][j] and j not in reached]
            left -= reached
            found[min(reached, key=lambda i: (-degree[i], i))] = sorted(reached)
        return dict(sorted(found.items()))

    count, size, _ = x.shape
    cells, means = [], []
    for t in range(count):
        for best, group in components(x[t]).items():
            cells.append(t * size + best)
            means.append(x[t, group].mean(0))
    final = {cells[best]: np.mean([means[i] for i in group], axis=0) for best, group in components(means).items()}
    joined = {cell: [row] for cell, row in final.items()}
    for token in x.reshape(count * size, -1):
        joined[max(final, key=lambda cell, token=token: cosine(token, final[cell]))].append(token)
    return {cell: np.mean(group, axis=0) for cell, group in joined.items()}


@pytest.mark.parametrize("kind", ["scenes", "random", "collapsed"])
def test_llava_scissor(kind):
    for t, n in [(6, 10), (3, 9), (2, 12), (1, 12)]:
        x, rows = batch(kind, t, n)
        found = select("llava_scissor", threshold=0.6, features=x, grid=(t, 1, n))
        same(found, [scissor(one, 0.6) for one in rows], x)


def next_layer(h):
    """What a layer makes of hidden states; rows do not mix, so both sides see the same."""
    return np.tanh(h * 1.1) + 0.1 * np.roll(h, 1, axis=-1)


def framefusion(h, where, cost, layers, similar, least, paid):
    """Tokens [(place, frame)] and hidden states that every layer processes; `where` as h, one layer after the other."""
    sparsity, merging, pruning, seen = [], True, True, []
    for _ in range(layers):
        n = len(h)
        share, total = 1.0, 0.0
        for s in sparsity:
            share *= 1 - s
            total += share
        u = max(0.0, 1 - (layers * cost - total) / ((layers - len(sparsity)) * share))
        if not merging and pruning:
            kept = sorted(highest([paid[at] for at in where], round(n * (1 - u))).tolist())
            h, where, pruning = h[kept], [where[i] for i in kept], False
        elif merging:
            order = sorted(range(n), key=lambda i: where[i])  # by place, then time
            likeness = {i: cosine(h[i], h[b]) for b, i in pairwise(order) if where[i][0] == where[b][0]}
            gone = [i for i, value in likeness.items() if value >= similar]
            if len(gone) / n < u:
                sparsity.append(len(gone) / n)
                merging = len(gone) / n >= least
            else:
                gone = sorted(likeness, key=lambda i: (-likeness[i], i))[: int(u * n + 1e-9)]
                merging = pruning = False
            groups, head = {}, None
            for i in order:
                head = head if i in gone else i
                groups.setdefault(head, []).append(i)
            kept = sorted(groups)
            h, where = np.stack([h[groups[i]].mean(0) for i in kept]), [where[i] for i in kept]
        seen.append((where, h))
        h = next_layer(h)
    return seen


@pytest.mark.parametrize("alike", [0.05, 0.4, 1.0, 3.0])
def test_framefusion(alike):
    """Enough pairs at once; some in each of several layers and then enough; too few, so that attention prunes."""
    layers, t, n = 12, 6, 9
    draw = np.random.default_rng(4)
    base = draw.standard_normal((1, n, 16))
    h = (base + draw.standard_normal((t, n, 16)) * alike * np.linspace(0.2, 1.5, n)[:, None]).reshape(t * n, 16)
    for cost in (0.3, 0.55, 0.9):
        where = [(i % n, i // n) for i in range(t * n)]
        paid = dict(zip(where, draw.uniform(size=t * n), strict=True))
        expected = framefusion(h, where, cost, layers, 0.6, 0.1, paid)
        hidden, tokens, before = torch.tensor(h), torch.arange(t * n), ()
        for layer in range(layers):
            row = torch.tensor([paid[where[i]] for i in tokens.tolist()])[None, None]
            signals = {"hidden": hidden[None], "attention_row": row}
            view = View(len(tokens), 1, ((t, 1, n),), signals, tokens[None], t * n, layers, before)
            found = (FrameFusionLater if layer else FrameFusion)(keep=cost).select(view)
            index, rows = chosen(found, 0, hidden[None])
            tokens = tokens[index]
            assert [where[i] for i in tokens.tolist()] == expected[layer][0], (cost, layer)
            np.testing.assert_allclose(rows, expected[layer][1], atol=1e-5)
            hidden, before = torch.tensor(next_layer(rows)), (*before, len(tokens))


def bilinear(values, rows, columns):
    """A map [h, w, d] at another size, pixels being squares with their centre in the middle."""
    h, w, _ = values.shape
    found = np.zeros((rows, columns, values.shape[2]))
    for r in range(rows):
        for c in range(columns):
            y, x = max((r + 0.5) * h / rows - 0.5, 0), max((c + 0.5) * w / columns - 0.5, 0)
            a, b = int(y), int(x)
            a2, b2 = min(a + 1, h - 1), min(b + 1, w - 1)
            top = values[a, b] * (1 - x + b) + values[a, b2] * (x - b)
            found[r, c] = top * (1 - y + a) + (values[a2, b] * (1 - x + b) + values[a2, b2] * (x - b)) * (y - a)
    return found


def pooled(values, rows, columns):
    """Means of the cells that a map [h, w, d] is cut into."""
    h, w, _ = values.shape
    cell = [
        values[r * h // rows : -(-(r + 1) * h // rows), c * w // columns : -(-(c + 1) * w // columns)].mean((0, 1))
        for r in range(rows)
        for c in range(columns)
    ]
    return np.stack(cell).reshape(rows, columns, -1)


def quota(x, scores, k, side, version):
    """Maps of the frames of one clip [T, side * side, d] that have any tokens, flat."""
    weights = (np.array(scores) * 100) ** 2
    weights = weights / weights.sum()
    if version == "mean":
        most = side * side / k
        excess = sum(w - most for w in weights if w > most)
        weights = np.minimum(weights, most)
        total = weights.sum()
        for i in range(len(weights)):
            if excess > 0 and weights[i] < most:
                weights[i] += weights[i] / total * excess
                excess += max(weights[i] - most, 0)
                weights[i] = min(weights[i], most)
    found = []
    for frame, weight in zip(x, weights, strict=True):
        tokens = int(k * weight)
        rows = columns = int(np.sqrt(tokens))
        if tokens and (rows + 1) * columns <= tokens:
            rows += 1
        if tokens:
            resize = bilinear if version == "bilinear" else pooled
            found.append(resize(frame.reshape(side, side, -1), rows, columns).reshape(rows * columns, -1))
    return np.concatenate(found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("version", ["bilinear", "mean"])
def test_quota(version, dtype):
    """Squares and squares with one row more, frames that get nothing, two frames, one."""
    draw = np.random.default_rng(5)
    for t, k, scores in [
        (6, 70, draw.uniform(0.2, 0.9, 6)),
        (6, 70, draw.uniform(0.3, 0.4, 6)),
        (5, 40, np.array([0.9, 0.02, 0.5, 0.0, 0.4])),
        (2, 31, np.array([0.6, 0.5])),
        (1, 20, np.array([0.3])),
        (4, 60, np.array([0.9, 0.3, 0.25, 0.1])) if version == "mean" else (3, 50, np.array([0.5, 0.5, 0.4])),
    ]:
        x, rows = batch("random", t, 25, dtype)
        given = torch.tensor(np.stack([scores, scores[::-1].copy()]))
        signals = {"features": x, "frame_scores": given, "grid": (t, 5, 5), "resize": version, "keep": k}
        found = select("quota", fill="none", **signals)
        for i, one in enumerate(rows):
            expected = quota(one, given[i].numpy(), k, 5, version)
            np.testing.assert_allclose(chosen(found, i, x)[1], expected, atol=1e-5)
        assert select("quota", **signals).index.shape == (2, k)


def streamvln(voxels, stride, least):
    """Cells kept of the voxels [T, N] of one clip."""
    count, size = voxels.shape
    latest = {}
    for t in range(count):
        for j in range(size):
            at = (t // stride if stride else 0, voxels[t, j])
            if voxels[t, j] >= 0 and (at not in latest or latest[at][0] < t):
                latest[at] = (t, j)
    kept = sorted(latest.values())
    return [t * size + j for t, j in kept if sum(s == t for s, _ in kept) >= least * size]


def test_streamvln():
    """Tokens without a voxel are dropped; a clip of which nothing is placed keeps nothing."""
    draw = np.random.default_rng(6)
    for t, n in SIZES:
        voxels = draw.integers(-2, 3 * n // 2, (2, t, n))
        for stride, least in ((0, 0.0), (2, 0.0), (3, 0.5)):
            given = {"voxels": torch.tensor(voxels).flatten(1), "stride": stride, "least": least, "grid": (t, 1, n)}
            found = select("streamvln", **given)
            assert [found.span(i)[0].tolist() for i in (0, 1)] == [streamvln(one, stride, least) for one in voxels]
    assert select("streamvln", voxels=torch.full((6,), -1), grid=(2, 1, 3)).index.tolist() == []
