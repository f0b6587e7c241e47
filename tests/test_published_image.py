"""Image methods against the published rules, computed here in float64 with plain loops, on inputs that matter: several
pictures, tiles with a base image, half precision, one word of text, ties, budgets of one token and of all."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tiny import FAMILIES, Picture
from tokenprune import Unsupported, prune, select
from tokenprune.methods.registry import all_methods, method_class

TILES = [(1, 4, 4), (1, 8, 8)]  # a base image, and 2 x 2 tiles in one grid
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def made(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def paid(*shape, seed=0, dtype=torch.float32):
    """Attention: positive, rows that add up to less than one."""
    return (made(*shape, seed=seed) * 2).softmax(-1).mul(0.7).to(dtype)


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def best(scores, k, among=None):
    """The k highest, the lower index first where they tie."""
    among = range(len(scores)) if among is None else among
    return sorted(among, key=lambda i: (-float(scores[i]), i))[:k]


def rows(chosen):
    """The kept tokens of each span."""
    if chosen.valid is None:
        return chosen.index.tolist()
    return [index[valid].tolist() for index, valid in zip(chosen.index, chosen.valid, strict=True)]


# EfficientVLA


def efficientvla(attention, features, k, key=4, alpha=0.5):
    attention, features = attention.double(), features.double()
    heads, words, n = attention.shape
    relevance = [sum(float(attention[:, t, j].sum()) / heads for t in range(words)) for j in range(n)]
    keys = best(relevance, min(key, k))
    task = best(relevance, math.floor(alpha * (k - len(keys))), [j for j in range(n) if j not in keys])
    left = [j for j in range(n) if j not in keys and j not in task]
    unlike = {j: 1 - max(cosine(features[j], features[i]) for i in keys) for j in left}
    return sorted([*keys, *task, *best(unlike, k - len(keys) - len(task), left)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("words", [1, 5])
def test_efficientvla(dtype, words):
    attention, features = paid(2, 3, words, 24, dtype=dtype), made(2, 24, 6, dtype=dtype)
    for k in (1, 4, 5, 10, 24):
        chosen = select("efficientvla", keep=k, text_attention=attention, features=features)
        assert rows(chosen) == [efficientvla(*span, k) for span in zip(attention, features, strict=True)]
    given = {"text_attention": attention, "features": features}
    for options in ({"key": 8}, {"alpha": 0.0}, {"alpha": 1.0}, {"key": 7, "alpha": 0.3}):
        found = rows(select("efficientvla", keep=15, **options, **given))
        assert found == [efficientvla(*span, 15, **options) for span in zip(attention, features, strict=True)]


def test_efficientvla_sums_over_the_words_and_compares_with_key_tokens_alone():
    """The last word decides nothing by itself, and two diverse tokens may be alike."""
    attention = torch.zeros(1, 2, 5)
    attention[0, 0, 0], attention[0, 1, 1] = 0.9, 0.3
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0], [0.0, 1.0]])
    chosen = select("efficientvla", keep=3, key=1, alpha=0.0, text_attention=attention, features=x)
    assert chosen.index.tolist() == [0, 3, 4]


def test_efficientvla_ties_go_to_the_lowest_index():
    even = {"text_attention": torch.full((2, 3, 9), 0.1), "features": torch.ones(9, 4)}
    assert select("efficientvla", keep=6, **even).index.tolist() == [0, 1, 2, 3, 4, 5]


# ToDRE


def todre(features, attention, k, nearest=False):
    unit = features.double() / features.double().norm(dim=-1, keepdim=True)
    n, distance = len(features), (1 - unit @ unit.T).tolist()
    chosen = best(attention.double(), 1)
    while len(chosen) < k:
        reach = {j: (min if nearest else sum)(distance[j][i] for i in chosen) for j in range(n) if j not in chosen}
        chosen += best(reach, 1, list(reach))
    return sorted(chosen)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("objective", ["maxsum", "maxmin"])
def test_todre(dtype, objective):
    features, attention = made(2, 20, 8, dtype=dtype), paid(2, 20, dtype=dtype)
    for k in (1, 2, 9, 20):
        found = rows(select("todre", keep=k, objective=objective, features=features, saliency=attention))
        assert found == [todre(x, a, k, objective == "maxmin") for x, a in zip(features, attention, strict=True)]
    assert select("todre", keep=5, features=features, saliency=attention).index.equal(
        select("todre", keep=5, objective="maxsum", source="cls", features=features, saliency=attention).index
    )


def test_todre_starts_at_the_best_attended_token_of_all_frames():
    attention = torch.zeros(12)
    attention[[2, 7]] = torch.tensor([0.3, 0.4])
    chosen = select("todre", keep=1, grid=(3, 2, 2), features=made(12, 4), saliency=attention)
    assert chosen.index.tolist() == [7]


def test_todre_counts_thumbnail_and_tiles_together(tiny_models):
    family = FAMILIES["llava_next"]
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5], [2, Picture(4, 4), 5]])
    with torch.no_grad(), prune(model, "todre", keep=7) as run:
        model(**inputs)
        assert [len(kept) for kept in run.kept[0]] == [7, 7]
        assert {span.part for span in run.spans} > {"base"}


def test_todres_second_stage():
    """At 7/8 of the layers; the ratio is a mean over all words and heads, not the last word's."""
    assert [at for at, _ in method_class("todre")().schedule(32)] == [0, 28]
    assert [at for at, _ in method_class("todre")().schedule(28)] == [0, 24]
    attention = torch.zeros(2, 3, 5)
    attention[:, -1] = 0.04  # 0.2 of the last word's attention, 0.0667 of all words'
    for share, stay in ((0.06, 5), (0.07, 0)):
        assert len(select("todre_migration", keep=0, share=share, text_attention=attention).index) == stay
    both = torch.stack([attention, torch.full((2, 3, 5), 0.03)])  # 0.15 of all words' attention
    chosen = select("todre_migration", keep=0, text_attention=both)
    assert [len(row) for row in rows(chosen)] == [0, 5]


# AdaptInfer


def adaptinfer(vision, text, k, blend):
    vision, text = vision.double(), text.double()
    heads, words, n = vision.shape
    both = torch.zeros_like(text)
    for h in range(heads):
        for i in range(words):
            for j in range(words):
                both[h, i, j] = text[h, i, j] + text[h, j, i] if i != j else text[h, i, i]
    mean = float(both.sum()) / both.numel()
    score = [0.0] * n
    for h in range(heads):
        for t in range(words):
            weight = sum(blend * float(both[h, i, t]) + (1 - blend) * mean for i in range(words))
            score = [s + weight * float(vision[h, t, j]) for j, s in enumerate(score)]
    return sorted(best(score, k))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blend", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("words", [1, 4])
def test_adaptinfer(dtype, blend, words):
    vision = torch.stack([paid(3, words, 30, seed=s) * torch.tensor([0.1, 1.0, 3.0])[:, None, None] for s in (0, 1)])
    text = torch.stack([paid(3, words, words, seed=s).tril() for s in (2, 3)]).to(dtype)
    vision = vision.to(dtype)
    for k in (1, 10, 30):
        found = rows(select("adaptinfer", keep=k, blend=blend, text_attention=vision, text_self_attention=text))
        assert found == [adaptinfer(v, t, k, blend) for v, t in zip(vision, text, strict=True)]


# VFlowOpt


def vflowopt(importance, features, grids, cell, k):
    """What the published code makes of a picture in tiles: kept tokens and their rows."""
    importance, features = importance.double(), features.double()
    n = len(importance)
    places = [(p, r, c) for p, (_, h, w) in enumerate(grids) for r in range(h) for c in range(w)]
    low = sorted(range(n), key=lambda i: float(importance[i]))[: n - k + int(n / cell**2)]
    kept = {i: features[i] for i in range(n) if i not in low}
    groups: dict = {}
    for i in low:
        part, row, column = places[i]
        groups.setdefault((part, int(row / cell), int(column / cell)), []).append(i)
    for members in groups.values():
        weight = importance[members] / importance[members].sum()
        kept[max(members, key=lambda i: float(importance[i]))] = (weight[:, None] * features[members]).sum(0)
    return sorted(kept), torch.stack([kept[i] for i in sorted(kept)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cell", "k"), [(2.0, 30), (3.7, 10), (5.5, 70), (8.0, 79)])
def test_vflowopt_recycles_as_the_code_does(dtype, cell, k):
    importance, features = torch.stack([paid(80, seed=s) for s in (0, 1)]), made(80, 5)
    importance[1, 16:60] *= 9  # fewer cells in use than in the first picture
    importance = importance.to(dtype)
    given = {"grid": TILES, "cell": cell, "recycle_in": "tiled", "budget_of": "published"}
    chosen = select("vflowopt", keep=k, saliency=importance, **given)
    for i in range(2):
        kept, merged = vflowopt(importance[i], features, TILES, cell, k)
        index, weights = chosen.span(i)
        assert index.tolist() == kept
        torch.testing.assert_close(weights @ features, merged.float(), atol=1e-5, rtol=0)


def test_vflowopt_recycles_in_tiled_pictures_alone():
    importance = paid(64)
    plain = select("vflowopt", keep=9, cell=4.0, recycle_in="tiled", grid=(1, 8, 8), saliency=importance)
    assert plain.weights is None
    assert plain.index.tolist() == sorted(best(importance, 9))


def test_vflowopts_entropy_is_spread_over_each_part():
    """In bits, softmax by base image and tiles: equal within a part, so that a part's size decides."""
    entropy = torch.full((80,), 3.0)
    level = {"grid": TILES, "entropy": entropy, "saliency": torch.zeros(80), "entropy_weight": 1.0}
    assert select("vflowopt_drop", keep=16, **level).index.tolist() == list(range(16))
    alone = torch.tensor([3.0, 4.0, 5.0])
    importance = torch.tensor([0.5, 0.2, 0.0])
    score = importance.double() + alone.double().exp() / alone.double().exp().sum()
    found = select("vflowopt_drop", keep=1, entropy_weight=1.0, entropy=alone, saliency=importance)
    assert found.index.tolist() == best(score, 1)


# AgilePruner


def effective_rank(x):
    singular = torch.linalg.svdvals(x.double())
    share = singular / singular.sum()
    return math.exp(-sum(float(q) * math.log(q) for q in share if q > 0))


def agilepruner(attention, features, k, average, tau_max):
    features, n = features.double(), len(features)
    scale = effective_rank(features) / average
    order = best(attention.double(), n)
    kept, free = [], list(order)
    while len(kept) < k:
        token = free[0] if free else next(i for i in order if i not in kept)
        kept.append(token)
        tau = min(0.01 * len(kept) * scale, tau_max)
        free = [i for i in free if i not in kept and 1 - cosine(features[i], features[token]) >= tau]
    return sorted(kept)


@pytest.mark.parametrize("dtype", DTYPES)
def test_agilepruner(dtype):
    attention, features = paid(2, 24, dtype=dtype), made(2, 24, 6)
    features[1] = features[1, :1] + 0.2 * features[1]  # a simple picture beside a complex one
    features = features.to(dtype)
    for k in (1, 7, 16, 24):
        options = {"erank_average": 4.0, "tau_max": 0.5}
        found = rows(select("agilepruner", keep=k, saliency=attention, vision_features=features, **options))
        spans = zip(attention, features, strict=True)
        assert found == [agilepruner(a, x, k, 4.0, 0.5) for a, x in spans]


def test_agile_ratio_splits_the_budget_by_effective_rank():
    attention, features = paid(3, 40), made(3, 40, 16)
    features[1] = features[1, :1] + 0.05 * features[1]
    features[2] = features[2, :1] + 0.4 * features[2]
    found = [effective_rank(x) for x in features]
    assert found[1] < 3 < found[2] < 14 < found[0]
    options = {"eranks": (3.0, 14.0), "shares": (0.8, 0.2), "keep": 20}
    given = {"saliency": attention, "vision_features": features, "vision_keys": made(3, 40, 4, seed=5)}
    for base in ("vispruner", "visionzip"):
        chosen = select("agile_ratio", base=base, **options, **given)
        for i, erank in enumerate(found):
            complexity = min(max((erank - 3) / 11, 0), 1)
            share = 0.8 * (1 - complexity) + 0.2 * complexity
            own = {"important": share} if base == "vispruner" else {"contextual": 1 - share}
            alone = select(base, keep=20, **own, **{name: x[i] for name, x in given.items()})
            assert chosen.index[i].equal(alone.index)
            if base == "visionzip":
                torch.testing.assert_close(chosen.weights[i], alone.weights)
    with pytest.raises(Unsupported, match="fopru does not choose one part of its tokens by attention"):
        select("agile_ratio", base="fopru", **options, **given)


# SparseVLM+


def sparsevlm_plus(vision, text, attention, weight, k, heads):
    vision, text, attention, weight = (x.double() for x in (vision, text, attention, weight))
    about = torch.stack([(text @ v).softmax(0) for v in vision]).mean(0)
    raters = [t for t in range(len(text)) if about[t] > about.mean()]
    per_head = []
    for one in attention:
        corrected = torch.stack([one[t] / weight[t] for t in raters])
        per_head.append((float(corrected.sum()), corrected.mean(0)))
    per_head.sort(key=lambda pair: -pair[0])
    score = torch.stack([mean for _, mean in per_head[:heads]]).mean(0)
    return sorted(best(score, k))


@pytest.mark.parametrize("heads", [14, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sparsevlm_plus_counts_fourteen_heads(heads, dtype):
    given = {
        "features": made(30, 8, dtype=dtype),
        "text_embeddings": made(6, 8, seed=1, dtype=dtype),
        "text_attention": (paid(32, 6, 30) * torch.linspace(0.1, 1.0, 32)[:, None, None]).to(dtype),
        "rope_weight": 0.5 + paid(6, 30, seed=2),
    }
    plus = method_class("sparsevlm")(version="2")
    assert plus.heads == 14
    assert [round(576 * stage.keep) for _, stage in plus.schedule(32)] == [300, 200, 118]
    for k in (1, 12, 29):
        chosen = select("sparsevlm", version="2", keep=k, heads=heads, **given)
        assert chosen.index.tolist() == sparsevlm_plus(*given.values(), k, heads)


def test_sparsevlms_raters_come_from_all_tokens_at_every_stage(tiny_models, monkeypatch):
    family, seen = FAMILIES["llava"], []
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5]])
    cls = method_class("sparsevlm")
    plain = cls.select
    monkeypatch.setattr(cls, "select", lambda self, view: seen.append(view) or plain(self, view))
    with torch.no_grad(), prune(model, "sparsevlm", keep=0.5) as run:
        model(**inputs)
        (span,) = run.spans
    assert [view.count < span.count for view in seen] == [False, True, True]
    assert all(view["features"].equal(seen[0]["features"]) for view in seen)


# HiRED


def hired(saliency, first, sizes, crop_of, keep, alpha):
    """Budgets in float32, as the code computes them."""
    saliency, first = saliency.double(), first.double()
    total = int(sum(sizes) * keep)
    base = min(int(total * alpha), sizes[0])
    rest = min(total - base, sum(sizes[1:]))
    top = best(first[: sizes[0]], int(sizes[0] * (1 - alpha)))
    votes = torch.tensor([sum(crop_of(i) == crop for i in top) for crop in range(len(sizes) - 1)])
    budgets = [base, *((votes / votes.sum()) * rest).int().tolist()]
    kept, start = [], 0
    for size, budget in zip(sizes, budgets, strict=True):
        kept += best(saliency, min(budget, size), range(start, start + size))
        start += size
    return sorted(kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.5, 0.9])
def test_hired(dtype, alpha):
    grids = [(1, 7, 7)] * 4
    for seed in range(3):
        saliency, first = paid(196, seed=seed, dtype=dtype), paid(196, seed=seed + 50, dtype=dtype)
        for keep in (0.07, 0.2, 0.5, 0.9):
            given = {"keep": keep, "alpha": alpha, "grid": grids, "saliency": saliency, "saliency_first": first}
            found = select("hired", fill="none", **given).index.tolist()
            assert found == hired(saliency, first, [49] * 4, lambda i: i * 3 // 49, keep, alpha)


# PruMerge


def prumerge(attention, keys, features, plus, neighbours=32):
    """The adaptive rule of the code on one picture: kept tokens, their rows, and the row for all that are dropped."""
    attention, keys, features = attention.double(), keys.double(), features.double()
    n = len(attention)
    low, high = (float(torch.quantile(attention, q)) for q in (0.25, 0.75))
    outliers = sum(float(a) > high + 1.5 * (high - low) for a in attention)
    kept = best(attention, outliers)
    if plus:
        kept += [i for i in range(0, n - 1, int(int(n / outliers) / 3)) if i not in kept]
    out = []
    for i in kept:
        others = [j for j in range(n) if j != i]
        near = best({j: cosine(keys[i], keys[j]) for j in others}, neighbours, others)
        out.append(features[i] + sum(attention[j] * features[j] for j in near))
    dropped = [j for j in range(n) if j not in kept]
    return kept, out, sum(attention[j] * features[j] for j in dropped)


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_prumerge(dtype, plus):
    attention = 0.001 + 0.1 * paid(2, 60)
    attention[0, [4, 9, 33, 51]] = torch.tensor([0.3, 0.2, 0.15, 0.1])
    attention[1, [2, 40]] = torch.tensor([0.2, 0.4])
    attention, keys, features = attention.to(dtype), made(2, 60, 6, dtype=dtype), made(2, 60, 5, seed=3)
    chosen = select("prumerge", plus=plus, saliency=attention, vision_keys=keys)
    for i in range(2):
        kept, merged, rest = prumerge(attention[i], keys[i], features[i], plus)
        index, weights = chosen.span(i)
        assert len(index) == len(kept) + 1
        (extra,) = set(index.tolist()) - set(kept)
        found = dict(zip(index.tolist(), weights @ features[i], strict=True))
        found = torch.stack([*(found[j] for j in kept), found[extra]]).double()
        torch.testing.assert_close(found, torch.stack([*merged, rest]), atol=1e-5, rtol=0)


# What has no code behind it, or nothing to choose between


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["fastervlm", "fopru"])
def test_the_best_attended(name, dtype):
    attention = paid(3, 50, dtype=dtype)
    attention[2] = 0.02  # all equal
    for k in (1, 17, 50):
        found = rows(select(name, keep=k, saliency=attention))
        assert found == [sorted(best(span.double(), k)) for span in attention]


def test_fopru_keeps_whole_rows():
    attention = paid(24)
    mean = [float(attention[6 * r : 6 * r + 6].double().mean()) for r in range(4)]
    order = best(mean, 4)
    chosen = select("fopru", strategy="row", keep=9, grid=(1, 4, 6), saliency=attention).index.tolist()
    whole = list(range(6 * order[0], 6 * order[0] + 6))
    assert chosen == sorted(whole + best(attention, 3, range(6 * order[1], 6 * order[1] + 6)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_star(dtype):
    x, text = made(20, 6, dtype=dtype), made(3, 6, seed=1, dtype=dtype)
    for name, rows_of in (("star", x), ("star_text", text)):
        score = sum((row.double() @ x.double().T / math.sqrt(6)).softmax(0) for row in rows_of)
        given = {"features": x} if name == "star" else {"hidden": x, "text_hidden": text}
        assert select(name, keep=7, **given).index.tolist() == sorted(best(score, 7))


def test_lvlm_csp():
    uniform = select("lvlm_csp_cluster", keep=7, saliency=paid(50)).index.tolist()
    assert uniform == [i * (50 // 7) for i in range(7)]
    row = paid(3, 50)
    found = select("lvlm_csp", keep=7, attention_row=row).index.tolist()
    assert found == sorted(best(row.double().sum(0), 7))


@pytest.mark.parametrize("dtype", DTYPES)
def test_token_transforming(dtype):
    attention, x = paid(20, dtype=dtype), made(20, 6, dtype=dtype)
    chosen = select("token_transforming", keep=5, temperature=0.1, saliency=attention, features=x)
    assert chosen.index.tolist() == sorted(best(attention.double(), 5))
    for i, weights in zip(chosen.index.tolist(), chosen.weights, strict=True):
        likeness = torch.tensor([cosine(x[i].double(), row.double()) for row in x], dtype=torch.float64)
        torch.testing.assert_close(weights.double(), (likeness / 0.1).softmax(0), atol=2e-3, rtol=0)


def test_tome_merges_the_most_similar_pairs():
    x, k = made(21, 6), 15
    even, odd = range(0, 21, 2), range(1, 21, 2)
    partner = {i: max(odd, key=lambda j: cosine(x[i].double(), x[j].double())) for i in even}
    gone = best({i: cosine(x[i].double(), x[partner[i]].double()) for i in even}, 21 - k, list(even))
    groups = {j: [j, *(i for i in gone if partner[i] == j)] for j in range(21) if j not in gone}
    chosen = select("tome", keep=k, features=x)
    assert chosen.index.tolist() == sorted(groups)
    expected = torch.stack([x[groups[j]].mean(0) for j in sorted(groups)])
    torch.testing.assert_close(chosen.apply(x), expected, atol=1e-6, rtol=0)


def test_light_colpali_merges_by_ward():
    """Agglomeration by hand: always the two groups whose union adds the least variance."""
    x = torch.nn.functional.normalize(made(14, 5).double(), dim=-1)
    groups = [[i] for i in range(14)]
    while len(groups) > 4:

        def cost(a, b):
            return len(a) * len(b) / (len(a) + len(b)) * float((x[a].mean(0) - x[b].mean(0)).square().sum())

        a, b = min(((a, b) for a in groups for b in groups if a[0] < b[0]), key=lambda pair: cost(*pair))
        groups = [g for g in groups if g not in (a, b)] + [sorted(a + b)]
    groups.sort()
    chosen = select("light_colpali", keep=4, features=x.float())
    assert chosen.index.tolist() == [group[0] for group in groups]
    expected = torch.stack([x[group].mean(0) for group in groups]).float()
    torch.testing.assert_close(chosen.apply(x.float()), expected, atol=1e-6, rtol=0)


def test_what_is_our_reading_says_so_first():
    ours = ("fopru", "star", "lvlm_csp", "token_transforming")
    for name in ours:
        assert (all_methods()[name].__doc__ or "").startswith("Our reading of "), name


# HiPrune


def hiprune(early, deep, k, width, alpha):
    n = len(early)
    anchors = best(early, round(alpha * k / 5))
    near = {min(max(i + step, 0), n - 1) for i in anchors for step in (0, -1, 1, -width, width)}
    return sorted([*near, *best(deep, k - len(near), [i for i in range(n) if i not in near])])


@pytest.mark.parametrize(("k", "alpha"), [(12, 0.1), (40, 0.5), (60, 0.8), (63, 0.3)])
def test_hiprune(k, alpha):
    early, deep = paid(2, 96, seed=3).double(), paid(2, 96, seed=4).double()
    found = select("hiprune", keep=k, alpha=alpha, grid=(1, 8, 12), saliency_early=early, saliency=deep)
    for span in range(2):
        assert found.index[span].tolist() == hiprune(early[span], deep[span], k, 12, alpha)


def test_hiprune_never_keeps_more_than_asked():
    early = torch.arange(36.0)
    found = select("hiprune", keep=3, alpha=1.0, grid=(1, 6, 6), saliency_early=early, saliency=early.flip(0))
    assert found.index.tolist() == [29, 34, 35]  # the anchor, and the first two of those beside it


# VScan


def vscan(early, deep, features, k, high, wide, window, exact):
    half, places = k // 2, [(r, c) for r in range(high) for c in range(wide)]
    windows = sorted({(r // window, c // window) for r, c in places})
    local = []
    for number in windows:
        own = [i for i, (r, c) in enumerate(places) if (r // window, c // window) == number]
        local += best(early, half // len(windows), own)
    others = [i for i in range(len(places)) if i not in local]
    chosen = sorted([*local, *best(deep, k - (len(local) if exact else half), others)])
    mixed = []
    for own in chosen:
        members = [own]
        for i in range(len(places)):
            if i not in chosen:
                like = [cosine(features[i], features[j]) for j in chosen]
                members += [i] * (chosen[like.index(max(like))] == own)
        mixed.append(features[members].mean(0))
    return chosen, torch.stack(mixed)


@pytest.mark.parametrize(("high", "wide", "window"), [(12, 12, 6), (8, 12, 4), (7, 9, 3)])
@pytest.mark.parametrize("fill", ["attention", "none"])
def test_vscan(high, wide, window, fill):
    n, k = high * wide, 41
    early, deep, x = paid(1, n, seed=5).double()[0], paid(1, n, seed=6).double()[0], made(n, 8, seed=7).double()
    given = {"features": x, "saliency_early": early, "saliency": deep, "grid": (1, high, wide)}
    found = select("vscan", keep=k, window=window, fill=fill, **given)
    index, mixed = vscan(early, deep, x, k, high, wide, window, fill == "attention")
    assert found.index.tolist() == index
    torch.testing.assert_close(found.apply(x).double(), mixed, atol=1e-5, rtol=0)


def test_vscan_stands_twice():
    """64 tokens on average: 96 before the LLM, 32 from half of the layers on."""
    stages = all_methods()["vscan"]().schedule(32)
    assert [(at, method.name) for at, method in stages] == [(0, "vscan"), (16, "vscan_inner")]
    assert round(576 * stages[0][1].keep) == 96
    assert round(96 * stages[1][1].keep) == 32
    row = paid(2, 3, 50, seed=8).double()
    found = select("vscan_inner", keep=10, attention_row=row)
    assert found.index.tolist() == [sorted(best(one.mean(0), 10)) for one in row]
