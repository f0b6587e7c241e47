"""Clips for the published rules of video methods, and what several of those rules share, in float64 and plain loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

KINDS = ("scenes", "random", "collapsed", "static")


def clip(kind, frames, size, d=12, seed=0):
    """float64 [T, N, d]: scenes whose places partly stand still, noise, frames nearly alike, or all the same."""
    draw = np.random.default_rng(seed)
    if kind == "random":
        return draw.standard_normal((frames, size, d))
    first = draw.standard_normal((size, d)) + 0.5
    if kind in ("static", "collapsed"):
        noise = draw.standard_normal((frames, size, d)) * (0.02 if kind == "collapsed" else 0)
        return np.repeat(first[None], frames, 0) + noise
    found = []
    for t in range(frames):
        if t and t % 4 == 0:
            first = draw.standard_normal((size, d)) + 0.5
        found.append(first + draw.standard_normal((size, d)) * np.where(np.arange(size) % 2, 0.05, 0.9)[:, None])
    return np.stack(found)


def attention(frames, size, seed=0):
    return np.random.default_rng(100 + seed).uniform(0.1, 1, (frames, size))


def chosen(selection, i, x):
    """Index and rows of clip i of what was selected; x: float [S, n, d]."""
    index, weights = selection.span(i)
    rows = x[i].double()
    return index.numpy(), (rows[index] if weights is None else weights.double() @ rows).numpy()


def same(selection, expected, x, atol=1e-5):
    """Whether every clip keeps the tokens of its expected {cell: row}, and becomes those rows."""
    for i, rows in enumerate(expected):
        index, found = chosen(selection, i, x)
        assert index.tolist() == sorted(rows)
        np.testing.assert_allclose(found, np.stack([rows[cell] for cell in sorted(rows)]), atol=atol)


def tensors(clips, dtype=torch.float64):
    """Clips [T, N, d] as one batch [S, T * N, d] of a type, and what that type makes of them, in float64 [T, N, d]."""
    x = torch.stack([torch.tensor(one) for one in clips]).to(dtype)
    return x.flatten(1, 2), list(x.double().numpy())


def highest(scores, k):
    """Indices of the k highest, of equal ones the first."""
    return np.argsort(-np.asarray(scores), kind="stable")[:k]


def cosine(a, b):
    """Cosine of two vectors, 0 where one is zero."""
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / length) if length else 0.0


def scenes(described, least, threshold):
    """First and last + 1 of the frames of every scene."""
    count = len(described)
    likeness = [cosine(described[t], described[t + 1]) for t in range(count - 1)]
    cuts = set(highest(-np.array(likeness), least - 1).tolist()) if likeness else set()
    cuts |= {t for t, value in enumerate(likeness) if value < threshold}
    edges = [0, *[t + 1 for t in sorted(cuts)], count]
    return list(pairwise(edges)), likeness


def distances(x):
    return np.linalg.norm(x[:, None] - x[None], axis=-1) / np.sqrt(x.shape[1])


def peaks(x, neighbours):
    """Density peak scores of rows [m, d]; of duplicates the first is denser."""
    far = distances(x)
    nearest = np.sort(far, axis=1)[:, : min(neighbours, len(x))]
    dense = np.exp(-(nearest**2).mean(1))
    scores = []
    for i in range(len(x)):
        higher = [
            j for j in range(len(x)) if dense[j] > dense[i] or (dense[j] == dense[i] and far[i, j] == 0 and j < i)
        ]
        scores.append(dense[i] * min([far[i, j] for j in higher], default=far.max()))
    return np.array(scores)


def clusters(x, count, neighbours):
    """Centres [count], best first, and the members of each: itself and what is nearest to it."""
    centres = highest(peaks(x, neighbours), count).tolist()
    far, members = distances(x), {centre: [centre] for centre in centres}
    for i in range(len(x)):
        if i not in members:
            members[centres[int(np.argmin(far[i, centres]))]].append(i)
    return members
