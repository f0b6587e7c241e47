"""What the video methods do: budgets on any shape, windows, merging through the layers, frames from images."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import pytest
import torch

from tests.draw import cases
from tests.laws import check_oracle, done
from tests.oracle import oracle_logits
from tests.tiny import FAMILIES, Picture, Video
from tokenprune import BadInput, DivPrune, FrameFusion, MissingSignal, Stage, Unsupported, prune, select
from tokenprune.core.frames import Frames, scenes, stretches
from tokenprune.core.merging import Survivors, stack_spans
from tokenprune.methods.base import View
from tokenprune.methods.framefusion import FrameFusionLater, predecessors
from tokenprune.methods.holitom import best_windows
from tokenprune.methods.prunevid import PruneVid
from tokenprune.methods.quota import squarest
from tokenprune.methods.registry import method_class

SHAPES = [(1, 4, 5), (2, 3, 3), (3, 1, 7), (5, 4, 4), (9, 2, 5), (17, 1, 1)]
KEEPS = (0, 1, 3, 0.1, 0.25, 0.5, 0.9, 1.0)
CASES = {
    "evs": [{}],
    "vidcom2": [{}],
    "dycoke": [{}, {"last": "whole"}],
    "fastvid": [{}, {"variant": "video"}, {"variant": "qwen"}],
    "flashvid": [{}, {"weighting": "event"}],
    "holitom": [{}, {"clustered": 0.5}],
    "prunevid": [{}],
    "llava_scissor": [{}],
    "quota": [{}, {"score": "text"}, {"resize": "mean"}],
    "streamvln": [{}, {"stride": 2}],
}


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def signals_for(method, shape, kind, spans=2):
    t, h, w = shape
    n = t * h * w
    x = made(spans, n, 16)
    if kind == "static":
        x = made(spans, 1, h * w, 16).expand(-1, t, -1, -1).reshape(spans, n, 16).clone()
    if kind == "zero":
        x = torch.zeros(spans, n, 16)
    known = {
        "features": x,
        "frame_features": x.view(spans, t, h * w, 16).mean(2),
        "saliency": made(spans, n, seed=1).sigmoid(),
        "voxels": torch.arange(n).remainder(10).expand(spans, -1),
        "frame_scores": made(spans, t, seed=2).sigmoid(),
        "text_embeddings": made(spans, 3, 16, seed=3),
    }
    return {need.signal: known[need.signal] for need in method.needs}


@cases(
    "name, kind, shape", list(product(CASES, ["random", "static", "zero"], SHAPES)), lambda name, kind, _: (name, kind)
)
def test_exactly_k_whatever_the_video(name, shape, kind):
    """Law 5: odd frame counts, one frame, static videos, cuts at every frame, tokens of one place only, all zeros."""
    n = shape[0] * shape[1] * shape[2]
    for options in CASES[name]:
        for keep in KEEPS:
            method = method_class(name)(keep=keep, **options)
            k = method.budget(View(n, 1, (), {}, total=n))
            chosen = select(method, grid=shape, **signals_for(method, shape, kind))
            assert chosen.index.shape == (2, k), (options, keep)
            assert chosen.valid is None
            assert bool((chosen.index.diff() > 0).all())
            assert k == 0 or (int(chosen.index.min()) >= 0 and int(chosen.index.max()) < n)
            if chosen.weights is not None:
                torch.testing.assert_close(chosen.weights.sum(-1), torch.ones(2, k), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["evs", "vidcom2", "dycoke", "fastvid", "flashvid", "holitom", "prunevid"])
def test_many_frames(name):
    """256 frames, and the same video cut at every frame."""
    method = method_class(name)(keep=150)
    for kind in ("random", "static"):
        signals = signals_for(method, (256, 2, 3), kind, spans=1)
        assert select(method, grid=(256, 2, 3), **signals).index.shape == (1, 150)


@pytest.mark.parametrize("name", CASES)
def test_after_an_earlier_stage(name):
    """Frames with holes in them, different ones for each span."""
    if name == "quota":
        pytest.skip("it resizes whole frames, and says so: test_quota")
    method = method_class(name)(keep=7)
    signals = signals_for(method, (6, 3, 4), "random")
    left = torch.stack([made(72, seed=s).argsort()[:40].sort().values for s in (5, 6)])
    given = {
        name: torch.stack([v[left[i]] for i, v in enumerate(values)]) if name not in ("frame_features",) else values
        for name, values in signals.items()
    }
    chosen = select(method, grid=(6, 3, 4), tokens=left, total=72, **given)
    assert chosen.index.shape == (2, 7)
    assert int(chosen.index.max()) < 40


def test_scenes_are_cut_where_frames_differ():
    similarity = torch.tensor([[0.95, 0.2, 0.99, 0.97, 0.98]])
    assert scenes(similarity, 1, 0.9).tolist() == [[0, 0, 1, 1, 1, 1]]
    assert scenes(similarity, 3, 0.9).tolist() == [[0, 0 + 1, 2, 2, 2, 2]]
    assert scenes(similarity, 99, 0.0).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert scenes(torch.empty(1, 0), 8, 0.9).tolist() == [[0]]
    assert stretches(torch.tensor([0, 0, 1, 3, 3])) == [(0, 2), (2, 3), (3, 5)]


def test_survivors_fill_up_and_take_off():
    stays = Survivors(5, torch.device("cpu"))
    stays.keep(torch.tensor([3]))
    stays.mix(torch.tensor([1]), torch.tensor([[0.0, 0.5, 0.5, 0.0, 0.0]]))
    scores = torch.tensor([0.1, 0.2, 0.9, 0.3, 0.4])
    index, weights = stays.exactly(3, scores)
    assert index.tolist() == [1, 2, 3]
    assert weights[0].tolist() == [0.0, 0.5, 0.5, 0.0, 0.0]
    assert stays.exactly(1, scores)[0].tolist() == [3]
    ragged = stack_spans([stays.all(), stays.exactly(1, scores)])
    assert ragged.valid.tolist() == [[True, True], [True, False]]


def test_windows_save_the_most():
    """Against every way to cut."""
    for seed in range(20):
        still = made(6, 5, seed=seed) > -0.5
        windows, saved = best_windows(still)

        def worth(cuts, still=still):
            edges = [0, *cuts, 7]
            return sum(int(still[a : b - 1].all(0).sum()) * (b - a - 1) if b - a > 1 else 0 for a, b in pairwise(edges))

        every = [worth(cuts) for size in range(7) for cuts in combinations(range(1, 7), size)]
        assert saved == max(every) == worth([first for first, _ in windows[1:]])
    assert best_windows(torch.empty(0, 4, dtype=torch.bool)) == ([(0, 1)], 0)


def test_prunevid_windows():
    """Of a cluster the longest run stays; a frame outside goes to the longer run beside it."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    frames = torch.stack([a, a, a, b, a, b, b, b]) + 0.001 * made(8, 2)
    labels = PruneVid()._labels(frames)
    assert stretches(labels) == [(0, 4), (4, 8)] or stretches(labels) == [(0, 5), (5, 8)]
    assert stretches(PruneVid()._labels(a.expand(1, 2))) == [(0, 1)]


def test_static_places_merge_through_time():
    """Half of the places never change: they become one token each, at the window's first frame."""
    still, moving = made(1, 4, 8).expand(6, -1, -1), made(6, 4, 8, seed=1)
    video = torch.cat([still, moving], dim=1)
    x = video.flatten(0, 1)
    chosen = select("prunevid", features=x, frame_features=video.mean(1), grid=(6, 2, 4))
    place = chosen.index % 8
    assert int((place < 4).sum()) == 4
    assert (chosen.index[place < 4] < 8).all()
    torch.testing.assert_close(chosen.apply(x)[place < 4], video[0, :4])


def test_framefusion_meets_its_mean():
    """Merging as long as it pays, then pruning; layers process the mean that was asked for."""
    family = FAMILIES["llava_next_video"]
    model, inputs = family.build(), family.inputs([[3, Video(4, 3, 3), 6]])
    with torch.no_grad(), prune(model, "framefusion", keep=0.5) as run:
        model(**inputs)
    report = run.report()
    assert report.average_tokens == pytest.approx(0.5 * report.tokens, abs=1.5)
    assert report.layer_tokens == sorted(report.layer_tokens, reverse=True)
    merging = FrameFusion(keep=0.5, similar=0.5)
    static = View(
        40, 1, ((4, 2, 5),), {"hidden": made(1, 1, 10, 8).expand(1, 4, -1, -1).flatten(1, 2)}, None, 40, 6, ()
    )
    chosen = merging.select(static)
    assert len(chosen.index[0]) == 20  # all is alike: done in one step, and no more than needed
    assert FrameFusionLater(keep=0.5).prunes(View(38, 1, (), {}, total=40, layers=6, layers_before=(38,)))
    finished = View(20, 1, ((4, 2, 5),), {}, total=40, layers=6, layers_before=(20, 20))
    assert len(FrameFusionLater(keep=0.5).select(finished).index[0]) == 20


def test_predecessors_skip_what_is_gone():
    frames = Frames.of(torch.tensor([[0, 0, 1, 2, 2]]), torch.tensor([[0, 1, 1, 0, 1]]), 3, 2)
    _, before = predecessors(made(1, 5, 4), frames)
    assert before.tolist() == [[-1, -1, 1, 0, 2]]


def test_quota():
    assert squarest(16, 14, 14) == (4, 4)
    assert squarest(20, 14, 14) == (5, 4)
    assert squarest(24, 14, 14) == (5, 4)
    assert squarest(12, 2, 9) == (2, 3)
    assert squarest(400, 14, 14) == (14, 14)
    assert squarest(0, 3, 3) == (0, 0)
    x = made(4 * 16, 8)
    scores = torch.tensor([0.0, 1.0, 0.0, 1.0])
    for resize in ("bilinear", "mean"):
        chosen = select("quota", keep=8, resize=resize, features=x, frame_scores=scores, grid=(4, 4, 4))
        assert (chosen.index // 16).bincount(minlength=4).tolist() == [0, 4, 0, 4]
    torch.testing.assert_close(chosen.apply(x)[0], x[[16, 17, 20, 21]].mean(0))
    with pytest.raises(BadInput, match="The signals are of 3 frames, the grid of 4"):
        select("quota", keep=8, features=x, frame_scores=torch.ones(3), grid=(4, 4, 4))
    left = {"features": x[:40], "frame_scores": scores, "tokens": torch.arange(40), "total": 64}
    with pytest.raises(BadInput, match="Make it the first stage"):
        select("quota", keep=8, grid=(4, 4, 4), **left)


def test_streamvln_keeps_the_latest():
    voxels = torch.tensor([1, 2, 3, 1, 2, 9, 1, -1, 9])
    given = {"voxels": voxels, "grid": (3, 1, 3)}
    assert select("streamvln", **given).index.tolist() == [2, 4, 6, 8]
    assert select("streamvln", unplaced="keep", **given).index.tolist() == [2, 4, 6, 7, 8]
    assert select("streamvln", stride=1, **given).index.tolist() == [0, 1, 2, 3, 4, 5, 6, 8]
    assert select("streamvln", least=0.5, **given).index.tolist() == [6, 8]
    assert select("streamvln", keep=2, **given).index.tolist() == [6, 8]
    with pytest.raises(BadInput, match="whole numbers"):
        select("streamvln", voxels=voxels / 2, grid=(3, 1, 3))


def test_scores_and_voxels_are_given_to_a_run(tiny_models):
    family = FAMILIES["qwen2_5_vl"]
    model, inputs = tiny_models(family), family.inputs([[2, Video(3, 2, 2), 4, Video(2, 2, 2), 6]])
    with torch.no_grad(), prune(model, "quota", keep=4) as run:
        with pytest.raises(MissingSignal, match=r"frame_scores.*run\.give"):
            model(**inputs)
        run.give(frame_scores=[[0.0, 1.0, 0.0], [1.0, 0.0]])
        model(**inputs)
        (first, second) = run.spans
        kept = run.kept[0][0].tolist()
        assert kept == [*first.columns[4:8], *second.columns[:4]]
        run.give(frame_scores=[[1.0], [1.0, 0.0]])
        with pytest.raises(BadInput, match="1 frames for an image or video of 3"):
            model(**inputs)
    with torch.no_grad(), prune(model, "streamvln") as run:
        run.give(voxels=[torch.arange(4).repeat(3), torch.arange(8)])
        model(**inputs)
        assert len(run.kept[0][0]) == 4 + 8


@pytest.mark.laws
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "pixtral", "mistral3"])
def test_images_as_frames(name, tiny_models):
    """Images of a row are one video on request; the oracle holds, whatever text stands between them."""
    family = FAMILIES[name]
    model = tiny_models(family)
    rows = [[3, Picture(3, 4), 2, Picture(3, 4), 1, Picture(3, 4), 5], [2, Picture(3, 4), 6]]
    inputs = family.inputs(rows)
    for method in ("evs", "fastvid", "dycoke"):
        with torch.no_grad(), prune(model, method, keep=0.4, images="frames") as run:
            logits = model(**inputs).logits
        long, short = run.spans
        assert long.grid[0] == 3 * short.grid[0]
        assert (long.count, long.part) == (3 * short.count, "video")
        repeated = done(run)
        expected = oracle_logits(family, model, inputs, **repeated)
        alive = inputs["attention_mask"].bool()[:, -4:]
        if not family.counts_padding:
            torch.testing.assert_close(logits[:, -4:][alive], expected[:, -4:][alive], atol=1e-4, rtol=0)
        else:
            torch.testing.assert_close(logits[0, -4:], expected[0, -4:], atol=1e-4, rtol=0)


def test_frames_must_be_of_one_size(tiny_models):
    family = FAMILIES["qwen2_5_vl"]
    model = tiny_models(family)
    with (
        prune(model, "evs", images="frames"),
        pytest.raises(Unsupported, match=r"one size.*1 x 3 x 4, 1 x 4 x 3"),
    ):
        model(**family.inputs([[2, Picture(3, 4), 2, Picture(4, 3), 4]]))
    with pytest.raises(BadInput, match="images"):
        prune(model, "evs", images="film")


@pytest.mark.laws
def test_a_video_method_between_layers(tiny_models):
    """Two stages: frames have holes when the second one runs."""
    family = FAMILIES["llava_next_video"]
    model = tiny_models(family)
    rows = [[3, Video(4, 3, 3), 6], [2, Video(4, 3, 3), 5]]
    with torch.no_grad(), prune(model, [Stage(0, DivPrune(keep=0.7)), Stage(3, FrameFusion(keep=0.3))]) as run:
        model(**family.inputs(rows))
    assert run.report().final_tokens < run.report().tokens * 0.7
    check_oracle(family, model, rows, "dycoke", "original")
