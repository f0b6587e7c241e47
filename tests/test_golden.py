"""Vectors of the published implementations: indices exactly, scores to 1e-5, merged tokens to 1e-4."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from tests.vectors import close, load
from tokenprune import select
from tokenprune.core.diversity import cosine_distance, max_min
from tokenprune.methods.base import View
from tokenprune.methods.cdpruner import CDPruner
from tokenprune.methods.sparsevlm import SparseVLM

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("name", ["fastv_r50_576", "fastv_edge_halfeven_n10"])
def test_fastv(name):
    data = load(name)
    start, n = int(data["image_start"]), int(data["n_image"])
    row = data["attn_last_row"][:, start : start + n]
    index = select("fastv", keep=1 - float(data["prune_ratio_r"]), attention_row=row).index
    assert index.tolist() == sorted(data["topk_image_index_by_score"].tolist())
    close(row.mean(0), data["score_image"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["divprune_rand640", "divprune_clusters300"])
def test_divprune(name, dtype):
    data = load(name)
    x = data["x"].to(dtype)
    assert select("divprune", keep=float(data["ratio"]), features=x).index.tolist() == data["kept_sorted"].tolist()
    order = max_min(cosine_distance(x[None]), len(data["kept_order"]))
    assert order[0].tolist() == data["kept_order"].tolist()


def rotated(x, positions, base):
    """Half-split RoPE of x [B, H, L, e]."""
    half = x.shape[-1] // 2
    angle = positions[:, None, :, None] / base ** (torch.arange(half) / half)
    cos, sin = angle.cos().repeat(1, 1, 1, 2), angle.sin().repeat(1, 1, 1, 2)
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def queries_and_keys(hidden, norm, eps, wq, wk, heads, kv_heads):
    x = hidden * (hidden.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * norm
    q = (x @ wq.T).unflatten(-1, (heads, -1)).transpose(1, 2)
    k = (x @ wk.T).unflatten(-1, (kv_heads, -1)).transpose(1, 2)
    return q, k.repeat_interleave(heads // kv_heads, dim=1)


@pytest.mark.parametrize("name", ["pdrop_stage0_576_b1", "pdrop_edge_b3_padded_noimage"])
def test_pyramiddrop(name):
    data = load(name)
    hidden, ratios, stage = data["hidden"], data["ratios"], int(data["stage"])
    positions = data["position_ids_in"].float()
    q, k = queries_and_keys(
        hidden,
        data["ln_weight"],
        float(data["rms_eps"]),
        data["wq"],
        data["wk"],
        int(data["n_heads"]),
        int(data["n_kv_heads"]),
    )
    q, k = (rotated(x, positions, float(data["rope_base"])) for x in (q, k))
    for row in range(len(hidden)):
        start, n = int(data["image_start"][row]), int(data["n_image_now"][row])
        kept = data["keep_index"][row]
        kept = kept[kept >= 0].tolist()
        length = len(data["attention_mask"][row].nonzero()) if len(data["attention_mask"]) else hidden.shape[1]
        if start < 0:
            assert kept == list(range(length))
            continue
        full = int(data["n_image_full"][row])
        last = start + n + int(data["n_text"][row]) - 1
        paid = torch.einsum("he,hle->hl", q[row, :, last], k[row, :, : last + 1]) / q.shape[-1] ** 0.5
        paid = paid.softmax(-1)[:, start : start + n]
        index = select(
            "pyramiddrop", keep=float(ratios[stage + 1]), total=full, attention_row=paid, grid=(1, 1, n)
        ).index
        assert [*range(start), *(index + start).tolist(), *range(start + n, length)] == kept


@pytest.mark.parametrize("name", ["feather_8_16_r70_s3_n576", "feather_small_n81_gqa"])
def test_feather(name):
    data = load(name)
    n, start, keep = int(data["n_image"]), int(data["image_start"]), 1 - float(data["ratio_r"])
    side = int(n**0.5)
    hidden, alive = data["hidden"], torch.arange(n)
    for stage in (0, 1):
        wq, wk, norm = (data[f"s{stage}_{w}"] for w in ("wq", "wk", "ln"))
        heads = (int(data["n_heads"]), int(data["n_kv_heads"]))
        q, k = queries_and_keys(hidden, norm, float(data["rms_eps"]), wq, wk, *heads)
        visual = k[0, :, start : start + len(alive)]
        paid = (torch.einsum("he,hle->hl", q[0, :, -1], visual) / q.shape[-1] ** 0.5).softmax(-1)
        close(paid.mean(0), data[f"s{stage}_score"])
        options = {"keep": keep, "stride": int(data["stride"]), "budget_of": "published"}
        if stage:
            options = {"keep": keep**2, "stride": 0}
        chosen = select("feather", attention_row=paid, grid=(1, side, side), tokens=alive, total=n, **options).index
        expected = data[f"s{stage}_keep_original_image_index"].long()
        assert alive[chosen].tolist() == expected.tolist()
        if not stage:  # with the whole count as the budget, the same set
            options = {"keep": len(expected), "stride": int(data["stride"])}
            assert select("feather", attention_row=paid, grid=(1, side, side), **options).index.equal(chosen)
        rows = torch.cat([torch.arange(start), start + chosen, torch.arange(start + len(alive), hidden.shape[1])])
        hidden, alive = hidden[:, rows], alive[chosen]


@pytest.mark.parametrize("name", ["sparsevlm_v15_retain192_layer2", "sparsevlm_v15_edge_k_clipped"])
def test_sparsevlm(name):
    data = load(name)
    kept, merged = data["keep_image_index"], data["merged_tokens"]
    signals = {
        "features": data["embed_vision"],
        "text_embeddings": data["embed_text"],
        "text_attention": data["attn_text_to_vision"],
        "hidden": data["layer_out_vision"],
    }
    view = View(len(data["score"]), 1, (), {name: x[None] for name, x in signals.items()})
    scores = SparseVLM().score(view)[0]
    close(scores, data["score"])
    n, total = len(scores), len(kept) + len(merged)
    options = [{"keep": len(kept), "budget_of": "published"}]
    if total < n:  # at the full budget nothing needs to be merged
        options.append({"keep": total})
    for one in options:
        chosen = select("sparsevlm", **signals, **one)
        found = chosen.apply(signals["hidden"])
        plain = torch.isin(chosen.index, kept)
        assert chosen.index[plain].tolist() == kept.tolist()
        close(found[plain], data["new_vision_tokens"][: len(kept)], 1e-4)
        distance = torch.cdist(found[~plain], merged)
        assert sorted(distance.argmin(1).tolist()) == list(range(len(merged)))
        assert distance.amin(1).max() < 1e-4


@pytest.mark.parametrize("name", ["visionzip_54_10", "visionzip_edge_step1"])
def test_visionzip(name):
    """Without the CLS token, which the published code keeps in front."""
    data = load(name)
    hidden, keys = data["hidden"][0, 1:], data["metric"][0, 1:]
    attention = data["cls_attn_row"][0, :, 1:].mean(0)
    dominant, contextual = int(data["dominant_arg"]) - 1, int(data["contextual_arg"])
    n, k = len(hidden), dominant + contextual
    if k == n:  # nothing is left to merge
        assert select("visionzip", keep=n, saliency=attention, vision_keys=keys).index.tolist() == list(range(n))
        return
    chosen = select("visionzip", keep=k, contextual=contextual / k, saliency=attention, vision_keys=keys)
    expected = data["dominant_patch_index_sorted"][0]
    plain = torch.isin(chosen.index, expected)
    assert chosen.index[plain].tolist() == expected.tolist()
    found, out = chosen.apply(hidden), data["out_tokens"][0, 1:]
    close(found[plain], out[:dominant], 1e-4)
    close(found[~plain], out[dominant:], 1e-4)


def test_vispruner():
    data = load("vispruner_128_r50")
    for i in range(len(data["mask"])):
        signals = {"saliency": data["cls_attn_patches"][i].mean(0), "vision_features": data["features"][i]}
        options = {"keep": int(data["T"]), "important": float(data["important_ratio"])}
        index = select("vispruner", **options, **signals).index
        assert index.tolist() == data["mask"][i].nonzero().flatten().tolist()


def test_vispruner_thins_an_odd_number():
    """The published code fails here."""
    data = load("vispruner_edge_odd_residual")
    assert "IndexError" in str(data["error"])
    signals = {"saliency": data["cls_attn_patches"][0].mean(0), "vision_features": data["features"][0]}
    index = select("vispruner", keep=int(data["T"]), **signals).index
    assert len(index.unique()) == int(data["T"])
    assert set(signals["saliency"].topk(32).indices.tolist()) <= set(index.tolist())


def test_hired():
    data = load("hired_2x2_20_a05")
    n, grids = int(data["n"]), [(1, 24, 24)] * len(data["mask"])
    signals = {
        "saliency": data["cls_row_layer22"][..., 1:].mean(1).flatten(),
        "saliency_first": data["cls_row_layer0"][..., 1:].mean(1).flatten(),
    }
    options = {"keep": float(data["rate"]), "alpha": float(data["alpha"])}
    index = select("hired", fill="none", grid=grids, **options, **signals).index
    assert index.tolist() == data["mask"].flatten().nonzero().flatten().tolist()
    assert len(index) == int(data["kept_total"])
    spent = select("hired", grid=grids, **options, **signals).index
    assert len(spent) == int(5 * n * float(data["rate"]))
    assert set(index.tolist()) <= set(spent.tolist())


@pytest.mark.parametrize("name", ["adaptinfer_r64_layer1", "adaptinfer_edge_r32_layer20_drop_all"])
def test_adaptinfer(name):
    data = load(name)
    signals = {"text_attention": data["attn_text_to_vision"], "text_self_attention": data["attn_text_to_text"]}
    index = select("adaptinfer", keep=int(data["k"]), blend=float(data["lb"]), **signals).index
    assert index.tolist() == data["keep_image_index"].tolist()


def test_cdpruner():
    """Three crops of a picture, whose relevance is scaled together."""
    data = load("cdpruner_batch5")
    signals = {"features": data["feat"], "clip_image": data["image_embeds"]}
    text = data["text_embeds"].expand(3, -1, -1)
    index = select("cdpruner", keep=int(data["T"]), relevance="clip", clip_text=text, **signals).index
    assert [row.tolist() for row in index] == [row.nonzero().flatten().tolist() for row in data["keep_mask"]]
    method = CDPruner(relevance="clip")
    view = View(144, 3, (), signals | {"clip_text": text})
    close(method._relevance(view, normalize(data["feat"], dim=-1)), data["relevance"])


def test_cdpruner_fills_up_when_the_rank_is_used_up():
    """The published code goes on with NaN and keeps 7 of 16."""
    data = load("cdpruner_rankdef_edge")
    signals = {"features": data["feat"][0], "clip_image": data["image_embeds"][0], "clip_text": data["text_embeds"]}
    index = select("cdpruner", keep=int(data["T"]), relevance="clip", **signals).index
    assert len(index.unique()) == int(data["T"]) > int(data["n_kept"])


def test_dart():
    data = load("dart_rand")
    start, n = int(data["image_start"]), int(data["image_len"])
    hidden, keys = data["hidden_normed"][0], data["k_states"][0]
    pivots = [*data["pivot_image"].tolist(), *data["pivot_text"].tolist()]
    order = tuple(pivots.index(p) for p in data["pivot_iteration_order"].tolist())
    index = select(
        "dart",
        keep=4 + 8 * int(data["topk_per_pivot"]),
        order=order,
        hidden=hidden[start : start + n],
        text_hidden=hidden[start + n :],
        keys=keys[:, start : start + n],
        text_keys=keys[:, start + n :],
    ).index
    kept = data["kept_sorted"] - start
    assert index.tolist() == kept[(kept >= 0) & (kept < n)].tolist()


def test_holov():
    data = load("holov_qwen_rand")
    options = {"keep": int(data["k"]), "crops": int(data["n_crops"])}
    chosen = select("holov", features=data["x"], saliency=data["attn"], **options)
    assert chosen.index.tolist() == sorted(data["positions"].tolist())
