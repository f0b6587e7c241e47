"""FastVID, FlashVID and HoliTom against the rules of their published code, computed here in float64 and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.clips64 import KINDS, attention, chosen, clip, clusters, cosine, highest, peaks, same, scenes, tensors
from tokenprune import select

SIZES = [(6, 16), (9, 8), (2, 10), (1, 10)]


def fastvid(x, attended, described, keep, variant, least, threshold, context=0.4, every=4, beta=0.6):
    """{cell: row} of one clip [T, N, d]."""
    size, kept = x.shape[1], {}
    found, likeness = scenes(described, least, threshold)
    own = int(size * keep)
    for first, last in found:
        m = last - first
        frames = list(range(m))
        if variant == "qwen":
            frames = [i for i in frames if i == m - 1 or likeness[first + i] < 0.95]
        anchors = [i for turn, i in enumerate(frames[::-1]) if turn % every == 0]  # the last one first
        salient, targets = [0] * m, [0] * m
        if variant == "onevision":
            salient = [own - int(own * context)] * m
            for i in anchors:
                targets[i] = int(own * context) * m // len(anchors)
        else:
            total = own * m
            shared = int(total * context)
            shared = max(shared, 1) if variant == "qwen" else shared
            rest = total - shared
            for turn, i in enumerate(frames):
                salient[i] = rest // len(frames) + (turn < rest % len(frames))
            for turn, i in enumerate(anchors):
                targets[i] = shared // len(anchors) + (turn < shared % len(anchors))
            if variant == "qwen" and m > 1:
                targets = [min(count, size // 2) for count in targets]
                salient = [min(count, size - taken) for count, taken in zip(salient, targets, strict=True)]
        attended_ones = [set(highest(attended[first + i], salient[i]).tolist()) for i in range(m)]
        for i in range(m):
            kept |= {(first + i) * size + j: x[first + i, j] for j in attended_ones[i]}
        for i in range(m):
            spare = [j for j in range(size) if j not in attended_ones[i]]
            mine = sorted(spare[j] for j in highest(peaks(x[first + i][spare], 4), targets[i]))
            alone = variant == "onevision" and targets[i] == int(own * context)
            pool = [(t, j) for t in ([i] if alone else range(m)) for j in range(size) if j not in attended_ones[t]]
            if variant != "onevision":
                pool = [(t, j) for t, j in pool if t != i or j not in mine]
            groups = {j: [] for j in mine}
            for t, j in pool if mine else ():
                groups[max(mine, key=lambda to, t=t, j=j: cosine(x[first + t, j], x[first + i, to]))].append((t, j))
            for j, group in groups.items():
                weight = max(1 / (len(group) + 1), beta)
                mean = np.mean([x[first + t, o] for t, o in group], axis=0) if group else 0
                share = weight if group else 1
                kept[(first + i) * size + j] = share * x[first + i, j] + (1 - share) * mean
    return kept


@pytest.mark.parametrize("variant", ["onevision", "video", "qwen"])
@pytest.mark.parametrize("kind", KINDS)
def test_fastvid(variant, kind):
    """Two clips in a batch; scenes of one frame and of many, collapsed ones too, more scenes asked for than frames."""
    for t, n in SIZES:
        clips = [clip(kind, t, n, seed=1), clip("scenes", t, n, seed=2)]
        x, rows = tensors(clips)
        saliency = [attention(t, n, 1), attention(t, n, 2)]
        means = [one.mean(1) for one in rows]
        signals = {"features": x, "frame_features": torch.tensor(np.stack(means)), "grid": (t, 1, n)}
        signals["saliency"] = torch.tensor(np.stack(saliency)).flatten(1)
        for keep, least, threshold, every in ((0.3, 1, 0.84, 4), (0.25, 8, 0.9, 2), (0.3, 3, 0.9, 1)):
            options = {"variant": variant, "scenes": least, "threshold": threshold, "every": every}
            found = select("fastvid", keep=keep, fill="none", **options, **signals)
            given = zip(rows, saliency, means, strict=True)
            expected = [fastvid(*one, keep, variant, least, threshold, every=every) for one in given]
            same(found, expected, x)
            exact = select("fastvid", keep=keep, **options, **signals).index
            assert exact.shape == (2, round(t * n * keep))
            for i, kept in enumerate(expected):
                smaller, larger = sorted((set(kept), set(exact[i].tolist())), key=len)
                assert smaller <= larger


def test_collapsed_frames_leave_their_share_to_the_scene():
    """6 frames of 40, 30 % of each: 72 tokens for the one frame that carries, which has 40, 20 of them targets."""
    x, _ = tensors([clip("collapsed", 6, 40)])
    signals = {"features": x[0], "frame_features": x[0].view(6, 40, -1).mean(1), "grid": (6, 5, 8)}
    signals["saliency"] = torch.tensor(attention(6, 40)).flatten()
    found = select("fastvid", keep=0.3, variant="qwen", scenes=1, threshold=0.84, fill="none", **signals)
    assert found.index.tolist() == list(range(200, 240))
    moved = (found.weights.gt(0).sum(-1) > 1).sum()  # 20 attended ones stay as they are
    assert 0 < int(moved) <= 20
    tiny = select("fastvid", keep=0.01, variant="qwen", scenes=1, threshold=0.84, fill="none", **signals)
    assert len(tiny.index) == 1  # one target at least


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fastvid_of_halves(dtype):
    x, rows = tensors([clip("scenes", 6, 20, seed=3)], dtype)
    means = rows[0].mean(1)
    signals = {"features": x, "frame_features": torch.tensor(means)[None], "grid": (6, 4, 5)}
    signals["saliency"] = torch.tensor(attention(6, 20)).flatten()[None]
    found = select("fastvid", keep=0.3, variant="qwen", scenes=2, threshold=0.84, fill="none", **signals)
    same(found, [fastvid(rows[0], attention(6, 20), means, 0.3, "qwen", 2, 0.84)], x)


def flashvid(x, attended, share, event, least, trees, diverse=0.7, similar=0.8, threshold=0.9):
    """{cell: row} of one clip [T, N, d]; in a scene of one frame kept tokens are not clustered again."""
    size, kept = x.shape[1], {}
    own = math.ceil(size * share)
    first_part = math.ceil(own * diverse)
    for first, last in scenes(x.mean(1), least, threshold)[0]:
        m = last - first
        spare = {}
        for t in range(first, last):
            weight = attended[t].copy()
            if event:
                means = x[first:last].mean(1)
                weight = weight * np.array([np.mean([token @ mean for mean in means]) for token in x[t]]).clip(min=0)
            far = [[(1 - cosine(a, b)) * weight[j] for j, b in enumerate(x[t])] for a in x[t]]
            picked = [int(np.argmax([min([far[i][j] for i in range(size) if i != j]) for j in range(size)]))]
            while len(picked) < first_part:
                left = [min(far[i][j] for i in picked) if j not in picked else -1 for j in range(size)]
                picked.append(int(np.argmax(left)))
            kept |= {t * size + j: x[t, j] for j in picked}
            spare[t] = [j for j in range(size) if j not in picked]
        rest = (own - first_part) * m
        if not rest:
            continue
        best = {}
        for t in range(first + 1, last):
            for j in spare[t]:
                likeness = [cosine(x[t, j], x[t - 1, o]) for o in spare[t - 1]]
                best[t, j] = max(likeness), spare[t - 1][int(np.argmax(likeness))]
        links = {at: to for at, (value, to) in best.items() if value > similar}
        most = sum(map(len, spare.values())) - rest
        if len(links) > most:
            floor = sorted((best[at][0] for at in links), reverse=True)[most - 1] if most else 2.0
            links = {at: to for at, to in links.items() if best[at][0] > floor}
        sums = {(t, j): x[t, j].copy() for t in spare for j in spare[t]}
        counts = dict.fromkeys(sums, 1)
        for t in range(last - 1, first, -1):
            for j in spare[t]:
                if (t, j) in links:
                    parent = (t - 1, links[t, j])
                    sums[parent] += sums[t, j]
                    counts[parent] += 1 if trees == "published" else counts[t, j]
        roots = {t: [j for j in spare[t] if (t, j) not in links] for t in spare}
        ratio = rest / sum(map(len, roots.values()))
        for t, mine in roots.items():
            values = np.array([sums[t, j] / counts[t, j] for j in mine])
            count = math.ceil(len(mine) * ratio)
            if ratio >= 1:
                kept |= {t * size + j: value for j, value in zip(mine, values, strict=True)}
            elif count:
                for centre, members in clusters(values, count, min(count, 7)).items():
                    kept[t * size + mine[centre]] = values[members].mean(0)
    return kept


@pytest.mark.parametrize("event", [False, True])
@pytest.mark.parametrize("kind", ["scenes", "random", "collapsed"])
def test_flashvid(kind, event):
    """Relevance to the scene alone, links that break when too few roots would be left, trees of both kinds."""
    for t, n in SIZES:
        clips = [clip(kind, t, n, seed=4) + (0.5 if event else 0), clip("scenes", t, n, seed=5)]
        x, rows = tensors(clips)
        saliency = [attention(t, n, 1), attention(t, n, 2)]
        signals = {"features": x, "saliency": torch.tensor(np.stack(saliency)).flatten(1), "grid": (t, 1, n)}
        for keep, least, trees in ((0.3, 2, "mean"), (0.55, 1, "published"), (0.15, 8, "mean")):
            options = {"scenes": least, "trees": trees, "weighting": "event" if event else "attention"}
            found = select("flashvid", keep=keep, fill="none", **options, **signals)
            same(found, [flashvid(*one, keep, event, least, trees) for one in zip(rows, saliency, strict=True)], x)
            assert select("flashvid", keep=keep, **options, **signals).index.shape == (2, math.ceil(t * n * keep))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_flashvid_of_halves(dtype):
    """Sums over a frame pass what half precision holds."""
    x, rows = tensors([clip("scenes", 6, 20, seed=6) * 900 + 5000], dtype)
    saliency = attention(6, 20)
    signals = {"features": x, "saliency": torch.tensor(saliency).flatten()[None], "grid": (6, 4, 5)}
    found = select("flashvid", keep=0.3, fill="none", scenes=2, weighting="event", **signals)
    same(found, [flashvid(rows[0], saliency, 0.3, True, 2, "mean")], x, atol=0.01)


def test_flashvid_inside_the_llm():
    """ceil(n * keep) of the tokens with the highest mean over the heads."""
    row = torch.rand(2, 4, 33, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = select("flashvid_inner", keep=0.3, attention_row=row)
    assert found.index.tolist() == [sorted(highest(one.mean(0), 10).tolist()) for one in row.numpy()]


def holitom(x, attended, keep, threshold, beta, clustered):
    """{cell: row} of one clip [T, N, d]; every way to cut it into windows is tried."""
    count, size, _ = x.shape
    still = [[cosine(x[t, j], x[t + 1, j]) > threshold for j in range(size)] for t in range(count - 1)]

    def saved(first, last):
        return sum(all(still[t][j] for t in range(first, last - 1)) for j in range(size)) * (last - first - 1)

    best = [(0, 0)]  # tokens saved in the first so many frames, and where the last window begins
    for last in range(1, count + 1):
        ways = [(best[last - w][0] + (saved(last - w, last) if w > 1 else 0), last - w) for w in range(1, last + 1)]
        best.append(max(ways, key=lambda way: (way[0], way[1])))
    windows, end = [], count
    while end:
        windows, end = [(best[end][1], end), *windows], best[end][1]
    ratio = min(1, keep / ((count * size - best[count][0]) / (count * size)))
    kept = {}

    def merged(values, number):
        members = clusters(values, number, min(7, number))
        for centre, group in members.items():
            others = group[1:]
            weight = beta if others else 1
            yield centre, weight * values[centre] + (1 - weight) * (values[others].mean(0) if others else 0)

    for first, last in windows:
        static = [j for j in range(size) if last - first > 1 and all(still[t][j] for t in range(first, last - 1))]
        number = round(len(static) * ratio)
        if number:
            for centre, row in merged(x[first:last, static].mean(0), number):
                kept[first * size + static[centre]] = row
        moving = [j for j in range(size) if j not in static]
        number = math.ceil(len(moving) * ratio)
        dominant = round(number * (1 - clustered))
        for t in range(first, last):
            order = [moving[i] for i in highest(attended[t][moving], len(moving))]
            kept |= {t * size + j: x[t, j] for j in order[:dominant]}
            rest = sorted(order[dominant:])
            if number > dominant:
                for centre, row in merged(x[t, rest], number - dominant):
                    kept[t * size + rest[centre]] = row
    return kept


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_holitom(kind, dtype):
    for t, n in SIZES:
        clips = [clip(kind, t, n, seed=8), clip("scenes", t, n, seed=9)]
        x, rows = tensors(clips, dtype)
        saliency = [attention(t, n, 1), attention(t, n, 2)]
        signals = {"features": x, "saliency": torch.tensor(np.stack(saliency)).flatten(1), "grid": (t, 1, n)}
        for keep, clustered in ((0.2, 0.0), (0.45, 0.5)):
            found = select("holitom", keep=keep, fill="none", clustered=clustered, **signals)
            expected = [holitom(*one, keep, 0.8, 0.6, clustered) for one in zip(rows, saliency, strict=True)]
            same(found, expected, x)


def test_holitom_inside_the_llm():
    """Dropped tokens go, one after the other, into the kept one that they are most like, half and half each time."""
    row = torch.rand(2, 3, 15, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hidden, rows = tensors([clip("random", 1, 15, seed=10), clip("random", 1, 15, seed=11)])
    found = select("holitom_inner", keep=0.5, attention_row=row, hidden=hidden)
    for i, before in enumerate(x[0] for x in rows):
        kept = sorted(highest(row[i].mean(0).numpy(), round(7.5)).tolist())
        after = before.copy()
        for j in (j for j in range(15) if j not in kept):
            to = max(kept, key=lambda o, j=j: cosine(before[j], before[o]))
            after[to] = (after[to] + before[j]) / 2
        index, values = chosen(found, i, hidden)
        assert index.tolist() == kept
        np.testing.assert_allclose(values, after[kept], atol=1e-6)


def test_a_number_of_tokens_is_not_lost_to_rounding():
    """49 * (1 / 49) is less than 1: a token of each frame all the same, and no second one."""
    x, _ = tensors([clip("random", 3, 49, seed=12)])
    signals = {"features": x[0], "saliency": torch.tensor(attention(3, 49)).flatten(), "grid": (3, 7, 7)}
    described = {"frame_features": x[0].view(3, 49, -1).mean(1), "scenes": 3}
    for k in (3, 87, 93):
        assert len(select("holitom", keep=k, fill="none", **signals).index) == k
        assert len(select("fastvid", keep=k, fill="none", **described, **signals).index) == k
