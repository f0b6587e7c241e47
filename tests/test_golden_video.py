"""Vectors of the published video methods: indices exactly, scores to 1e-5, merged tokens to 1e-4."""

from __future__ import annotations

import pytest
import torch

from tests.vectors import close, load
from tokenprune import select
from tokenprune.core.frames import same_patch_cosine
from tokenprune.methods.base import View
from tokenprune.methods.evs import EVS
from tokenprune.methods.holitom import best_windows
from tokenprune.methods.vidcom2 import shares, usualness

pytestmark = pytest.mark.golden


def whole(video, **signals):
    """A view of one span with features [T, N, d]."""
    t, n, _ = video.shape
    given = {"features": video.flatten(0, 1)[None]} | {k: v[None] for k, v in signals.items()}
    return View(t * n, 1, ((t, 1, n),), given, total=t * n)


def test_evs():
    data = load("evs_scenes")
    video = data["video"]
    t = len(video)
    index = select("evs", keep=1 - float(data["q"]), features=video.flatten(0, 1), grid=(t, 8, 8)).index
    assert index.tolist() == data["keep_mask"].nonzero().flatten().tolist()
    close(EVS().score(whole(video))[0], data["dissimilarity"])


def test_vidcom2():
    data = load("vidcom2_scenes")
    video, keep = data["video"], float(data["base_scale"])
    view = whole(video)
    frames = view.frames("test")
    of_video, of_frame = usualness(view["features"], frames)
    close(of_video[0], data["video_score"])
    close(of_frame[0], data["frame_score"])
    close(shares(of_video, frames, keep)[0], data["frame_scale"])
    features = {"features": video.flatten(0, 1), "grid": (16, 8, 8)}
    index = select("vidcom2", keep=keep, fill="none", **features).index
    assert index.tolist() == data["kept"].tolist()
    exact = select("vidcom2", keep=keep, **features).index
    assert len(exact) == round(1024 * keep)
    assert set(index.tolist()) <= set(exact.tolist()) or set(exact.tolist()) <= set(index.tolist())


@pytest.mark.parametrize(
    ("name", "used", "last"),
    [("dycoke_ttm_static", 12, "whole"), ("dycoke_ttm_oddframes_edge", 8, "pruned")],
)
def test_dycoke(name, used, last):
    """The published code leaves the third frame of the last group whole; of nine frames it deletes one instead."""
    data = load(name)
    n = int(data["tokens_per_frame"])
    features = {"features": data["x"][: used * n], "grid": (used, 1, n)}
    counts = data["kept_per_frame"][:used]
    index = select("dycoke", keep=int(counts.sum()), last=last, **features).index
    assert index.tolist() == sorted(data["kept_idx_in_output_order"].tolist())
    m, groups = int((1 - float(data["k"])) * n), used // 4
    ours = select("dycoke", keep=groups * n + 3 * groups * m, **features).index
    assert (ours // n).bincount(minlength=used).tolist() == [n, m, m, m] * groups


def test_dycoke_keeps_an_odd_frame():
    data = load("dycoke_ttm_oddframes_edge")
    index = select("dycoke", keep=0.472, features=data["x"], grid=(9, 7, 7)).index
    assert (index // 49).bincount(minlength=9)[8] == 49


def fastvid(data, **options):
    video, attention, frames = data["video"], data["frame_attn"], data["frame_global"]
    t, n, _ = video.shape
    cfg = {"scenes": "c", "threshold": "tau", "context": "d", "every": "p", "beta": "beta"}
    options |= {name: data[f"cfg_{key}"].item() for name, key in cfg.items()}
    keep = float(data["cfg_r"])
    signals = {"features": video.flatten(0, 1), "saliency": attention.flatten(), "frame_features": frames}
    return select("fastvid", keep=round(keep, 6), grid=(t, 1, n), **options, **signals), signals["features"]


def test_fastvid():
    data = load("fastvid_ov_scenes")
    chosen, x = fastvid(data, fill="none")
    assert chosen.index.tolist() == data["kept_no_noise"].tolist()
    close(chosen.apply(x), data["merged_no_noise"], atol=1e-4)
    exact, _ = fastvid(data)
    assert len(exact.index) == round(1024 * 0.2)
    assert set(chosen.index.tolist()) < set(exact.index.tolist())


def test_fastvid_of_llava_video():
    """Newlines are no visual tokens here: a row's newline stays as long as one of its tokens does, as published."""
    data = load("fastvid_video_newline")
    chosen, x = fastvid(data, fill="none", variant="video")
    cell = data["kept_grid_idx_no_noise"]
    pure = cell % 14 < 13
    assert int(pure.sum()) == int(data["n_pure"])
    assert chosen.index.tolist() == (cell // 14 * 13 + cell % 14)[pure].tolist()
    close(chosen.apply(x), data["merged_no_noise"][pure], atol=1e-4)
    rows = (chosen.index // 13).unique()
    assert rows.tolist() == (cell[~pure] // 14).tolist()


def test_flashvid():
    """In a scene of one frame (here 5) the published code clusters tokens that it keeps already, one of them twice."""
    data = load("flashvid_scenes_v1")
    video, attention = data["video"], data["attn"]
    cfg = {"diverse": "alpha", "similar": "tau", "threshold": "seg", "scenes": "min_seg"}
    options = {name: round(data[f"cfg_{key}"].item(), 6) for name, key in cfg.items()}
    keep = round(data["cfg_ratio"].item() * data["cfg_expansion"].item(), 6)
    signals = {"features": video.flatten(0, 1), "saliency": attention.flatten()}
    options |= {"scenes": int(options["scenes"]), "keep": keep, "grid": (12, 8, 8)}
    chosen = select("flashvid", fill="none", trees="published", **options, **signals)
    kept, merged, ours = data["kept_no_noise"], data["merged_no_noise"], chosen.apply(signals["features"])
    theirs, mine = kept // 64 != 5, chosen.index // 64 != 5
    assert chosen.index[mine].tolist() == kept[theirs].tolist()
    close(ours[mine], merged[theirs], atol=1e-4)
    assert int((~mine).sum()) == int((~theirs).sum()) == int(data["n_adts"] + data["n_sttm"])
    assert len(kept[~theirs].unique()) < len(kept[~theirs])
    assert len(select("flashvid", **options, **signals).index) == round(768 * keep)


def in_any_order(rows):
    """Rows sorted, to compare sets of tokens."""
    return torch.stack(sorted(rows, key=lambda row: row.tolist()))


def test_holitom():
    """Ours come in the prompt's order, theirs window by window with the attended tokens first."""
    data = load("holitom_scenes")
    video, attention = data["video"], data["attn"]
    options = {"threshold": round(data["cfg_tau"].item(), 6), "beta": round(data["cfg_beta"].item(), 6)}
    signals = {"features": video.flatten(0, 1), "saliency": attention.flatten()}
    keep = round(data["cfg_ratio"].item(), 6)
    chosen = select("holitom", keep=keep, fill="none", grid=(12, 8, 8), **options, **signals)
    windows, saved = best_windows(same_patch_cosine(video[None])[0] > options["threshold"])
    assert [[first, last - 1] for first, last in windows] == data["segments"].tolist()
    assert saved == int(data["total_reduced"])
    merged = chosen.apply(signals["features"])
    for (first, last), count in zip(windows, data["tokens_per_segment"].tolist(), strict=True):
        assert int(((chosen.index >= first * 64) & (chosen.index < last * 64)).sum()) == count
    close(in_any_order(merged), in_any_order(data["merged_no_noise"]), atol=1e-4)


def test_framefusion():
    """The first merging step, in which enough tokens are alike."""
    data = load("framefusion_merge_scenes")
    visual = data["patch_type"] >= 0
    start, n = int(visual.nonzero()[0]), int(data["patch_num"])
    x = data["hidden"][visual]
    keep, similar = (round(data[f"cfg_{name}"].item(), 6) for name in ("cost", "sim"))
    chosen = select("framefusion", keep=keep, similar=similar, hidden=x, grid=(len(x) // n, 6, 6))
    kept = data["kept_pos"]
    inside = visual[kept]
    assert (chosen.index + start).tolist() == kept[inside].tolist()
    close(chosen.apply(x), data["merged"][inside], atol=1e-4)
