"""What single methods do, on inputs whose answer can be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from tests.laws import BATCHES
from tests.signals import listen, signals
from tests.tiny import FAMILIES, Picture
from tokenprune import BadInput, MissingSignal, Random, Selection, Stage, prune, select
from tokenprune.core.diversity import greedy_dpp, max_min, max_sum
from tokenprune.core.merging import bipartite, density_peaks
from tokenprune.methods.agilepruner import effective_rank
from tokenprune.methods.base import Method, places
from tokenprune.methods.lvlm_csp import LVLMCSPCluster, LVLMCSPScatter
from tokenprune.methods.place import Decode, Layer, Pixels, in_encoder
from tokenprune.methods.registry import all_methods
from tokenprune.signals.need import Need

TILES = [(1, 4, 4), (1, 8, 8)]  # a base image and one grid of 2 x 2 tiles


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_stages_by_name():
    """Where papers put them in a model of 32 layers; every schedule fits a model of 4."""
    expected = {
        "pyramiddrop": [8, 16, 24],
        "feather": [8, 16],
        "sparsevlm": [3, 7, 16],
        "adaptinfer": [2, 11, 21],
        "fastv": [2],
        "divprune": [0],
        "star": [0, 16],
        "flashvid": [0, 23],
        "holitom": [0, 21],
        "prunevid": [0, 11],
        "framefusion": [0, 1, 2, 3, 4, 5, 6, 7],
        "dycoke_kv": [Decode(3)],
        "fastocr": [Decode(6), Decode(14), Decode(23)],
        "pixelprune": [Pixels()],
    }
    found = {
        name: [one.at if isinstance(one, Layer) else one for one in places(all_methods()[name])] for name in expected
    }
    assert found == expected
    assert places(all_methods()["vflowopt"], layers=28) == [Layer(0), Layer(9), Layer(18)]
    for cls in all_methods().values():
        found = places(cls, layers=4)
        assert [one.order for one in found] == sorted({one.order for one in found})
        assert in_encoder(found[-1]) or (found[-1].start or found[-1].at) < 4


def test_schedules_keep_what_is_published():
    layers = all_methods()["sparsevlm"]().schedule(32)
    assert [round(576 * method.keep) for _, method in layers] == [300, 200, 110]
    layers = all_methods()["adaptinfer"]().schedule(32)
    assert [round(576 * method.keep) for _, method in layers] == [133, 27, 3]
    layers = all_methods()["pyramiddrop"]().schedule(32)
    assert [int(576 * method.keep) for _, method in layers] == [288, 144, 72]
    for cls in all_methods().values():
        assert all(method.keep == 1.0 for _, method in cls(keep=1.0).schedule(32)), cls.name


def test_downsample_pools_cells():
    x = torch.arange(16.0)[:, None]
    chosen = select("downsample", keep=4, grid=(1, 4, 4), features=x)
    assert chosen.apply(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    for k in range(1, 17):
        chosen = select("downsample", keep=k, grid=(1, 4, 4), features=x)
        assert len(chosen.index) == k
        if k < 16:
            torch.testing.assert_close(chosen.weights.sum(-1), torch.ones(k))
            torch.testing.assert_close((chosen.weights > 0).sum(0), torch.ones(16, dtype=torch.long))
    frames = select("downsample", keep=2, grid=(2, 2, 4), features=x)
    assert frames.apply(x).flatten().tolist() == [3.5, 11.5]
    with pytest.raises(BadInput, match=r"pools the whole grid, but 9 tokens are left"):
        select("downsample", keep=2, grid=(1, 4, 4), tokens=torch.arange(9), features=x[:9])


def test_tome_merges_duplicates_first():
    pairs = made(6, 8).repeat_interleave(2, dim=0)
    chosen = select("tome", keep=6, features=pairs)
    torch.testing.assert_close(chosen.apply(pairs), pairs[::2])
    far = select("tome", keep=2, features=made(40, 8))
    torch.testing.assert_close(far.weights.sum(-1), torch.ones(2))
    assert (far.weights > 0).sum() == 40


def test_bipartite_weighs_by_size():
    metric = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    index, weights = bipartite(metric, 1, torch.tensor([[3.0, 1.0, 1.0]]))
    assert index.tolist() == [[1, 2]]
    assert weights.tolist() == [[[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]]]


def test_density_peaks_find_clear_groups():
    centres = 10 * made(3, 5)
    label = torch.arange(30) % 3
    x = (centres[label] + 0.1 * made(30, 5, seed=1))[None]
    peaks, group = density_peaks(x, 3, 5)
    assert sorted(label[peaks[0]].tolist()) == [0, 1, 2]
    assert all(len(set(label[group[0] == i].tolist())) == 1 for i in range(3))
    same, _ = density_peaks(torch.zeros(1, 7, 4), 3, 5)  # all ties: lowest first, none twice
    assert same.tolist() == [[0, 1, 2]]


def test_visionzip_sums_or_averages():
    saliency = torch.tensor([9.0, 8.0, 1.0, 1.0, 1.0, 1.0])
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    given = {"keep": 4, "contextual": 0.5, "saliency": saliency, "vision_keys": keys}
    x = torch.arange(6.0)[:, None]
    assert select("visionzip", **given).apply(x).flatten().tolist() == [0.0, 1.0, 5.0, 9.0]
    assert select("visionzip", merge="mean", **given).apply(x).flatten().tolist() == [0.0, 1.0, 2.5, 4.5]


def test_prumerge_counts_outliers():
    """Two outliers and one token for the rest; equal attention has no outliers and still keeps one."""
    attention = torch.full((20,), 0.01)
    attention[[3, 11]] = torch.tensor([0.4, 0.3])
    chosen = select("prumerge", saliency=attention, vision_keys=made(20, 4), neighbours=2)
    assert len(chosen.index) == 3
    assert {3, 11} <= set(chosen.index.tolist())
    extra = next(i for i, token in enumerate(chosen.index.tolist()) if token not in (3, 11))
    torch.testing.assert_close(chosen.weights[extra].sum(), torch.tensor(0.18))
    plus = select("prumerge", plus=True, saliency=attention, vision_keys=made(20, 4))
    assert len(plus.index) > 3
    level = select("prumerge", saliency=torch.ones(20), vision_keys=made(20, 4))
    assert len(level.index) == 2
    both = select("prumerge", saliency=torch.stack([attention, torch.ones(20)]), vision_keys=made(2, 20, 4))
    assert both.valid.tolist() == [[True] * 3, [True, True, False]]


def test_vflowopt_recycles_cell_by_cell():
    importance = torch.rand(64, generator=torch.Generator().manual_seed(0))
    chosen = select("vflowopt", keep=10, cell=4.0, grid=(1, 8, 8), saliency=importance)
    plain = chosen.weights.max(-1).values == 1
    assert set(importance.topk(6).indices.tolist()) <= set(chosen.index[plain].tolist())
    torch.testing.assert_close(chosen.weights.sum(-1), torch.ones(10))
    assert ((chosen.weights > 0).sum(0) == 1).all()  # every token goes somewhere, once
    drop = select("vflowopt_drop", keep=10, saliency=importance)
    assert drop.index.tolist() == sorted(importance.topk(10).indices.tolist())


def test_hired_gives_to_the_tile_that_is_looked_at():
    """What the base image's first layer attends to in its top right corner is shown by the second tile."""
    first = torch.zeros(80)
    first[[2, 3, 6, 7]] = 1.0
    given = {"keep": 40, "alpha": 0.75, "grid": TILES, "saliency": torch.rand(80), "saliency_first": first}
    index = select("hired", crop_map="tiles", fill="none", **given).index
    row, column = (index[index >= 16] - 16) // 8, (index[index >= 16] - 16) % 8
    hit = (row < 4) & (column >= 4)
    assert hit.all()
    assert len(hit) == 16
    strips = select("hired", crop_map="strips", fill="none", **given).index
    assert strips.tolist() != index.tolist()
    assert len(select("hired", **given).index) == 40
    one = select("hired", keep=5, grid=(1, 4, 4), saliency=torch.arange(16.0), saliency_first=torch.zeros(16))
    assert one.index.tolist() == [11, 12, 13, 14, 15]


def test_coarse_to_fine_looks_into_the_tile_with_most_votes():
    row = torch.rand(1, 80, generator=torch.Generator().manual_seed(0)) / 100
    row[0, [0, 1, 4, 5]] = 1.0  # the top left of the base image
    index = select("coarse_to_fine", keep=20, grid=TILES, attention_row=row).index
    tokens = index[index >= 16] - 16
    assert {0, 1, 4, 5} <= set(index.tolist())
    assert ((tokens // 8 < 4) & (tokens % 8 < 4)).all()


def test_todre_drops_all_once_nothing_is_paid():
    paid = torch.full((2, 3, 10), 0.02)
    assert len(select("todre_migration", keep=0, text_attention=paid).index) == 10
    assert len(select("todre_migration", keep=0, share=0.3, text_attention=paid).index) == 0
    assert len(select("todre_migration", keep=3, share=0.3, text_attention=paid).index) == 3


def test_max_sum_and_seeds_equal_their_plain_reference():
    distance = torch.cdist(made(1, 12, 4), made(1, 12, 4))[0]
    chosen = [int(distance.sum(-1).argmax())]
    while len(chosen) < 5:
        total = distance[:, chosen].sum(-1)
        total[chosen] = -1
        chosen.append(int(total.argmax()))
    assert max_sum(distance[None], 5).tolist() == [chosen]
    seeded = max_min(distance[None], 1, seeds=torch.tensor([[2, 7]]))
    nearest = torch.minimum(distance[2], distance[7])
    nearest[[2, 7]] = -1
    assert seeded.item() == int(nearest.argmax())


def test_dpp_equals_the_determinants():
    """Each pick has the largest determinant of all sets that add one token."""
    x = made(9, 6).double()
    kernel = x @ x.T
    picks = greedy_dpp(kernel[None], 4, torch.zeros(1, 9))[0].tolist()
    chosen: list[int] = []
    for pick in picks:
        sets = {j: torch.linalg.det(kernel[[*chosen, j]][:, [*chosen, j]]) for j in range(9) if j not in chosen}
        assert pick == max(sets, key=sets.get)
        chosen.append(pick)


def test_effective_rank():
    torch.testing.assert_close(effective_rank(torch.eye(7)[None]), torch.tensor([7.0], dtype=torch.float64))
    assert effective_rank(torch.ones(1, 5, 3)).item() == pytest.approx(1.0, abs=1e-6)


def test_feathers_grid_counts_or_not():
    row = torch.rand(2, 36, generator=torch.Generator().manual_seed(0))
    given = {"grid": (1, 6, 6), "stride": 3, "attention_row": row}
    assert len(select("feather", keep=8, **given).index) == 8
    published = select("feather", keep=8, budget_of="published", **given).index
    assert {0, 3, 18, 21} <= set(published.tolist())
    assert 8 <= len(published) <= 12
    assert len(select("feather", keep=8, stride=0, attention_row=row).index) == 8
    with pytest.raises(BadInput, match=r"feather with a stride needs the grid"):
        select("feather", keep=8, attention_row=row)


def test_budgets_of_a_whole_picture(tiny_models):
    """scope="item": ten tokens of a picture in tiles, not of each part; a float counts from all of them."""
    family = FAMILIES["llava_next"]
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5]])
    sizes = [t * h * w for t, h, w in family.spans(Picture(4, 6))]
    assert len(sizes) == 2
    for keep, expected in ((10, 10), (0.25, round(0.25 * sum(sizes)))):
        with torch.no_grad(), prune(model, "divprune", keep=keep, scope="item") as run:
            model(**inputs)
            assert len(run.kept[0][0]) == expected
    with torch.no_grad(), prune(model, "divprune", keep=10) as run:
        model(**inputs)
        assert len(run.kept[0][0]) == 20
    with pytest.raises(BadInput, match=r"Unknown scope 'itm'\. Did you mean 'item'"):
        prune(model, "divprune", scope="itm")


@pytest.mark.parametrize("name", ["llava_next", "internvl", "smolvlm"])
def test_the_base_image_is_the_first_part(tiny_models, name):
    """Wherever a family puts it, methods over a whole picture find it in front; their choice lands where it lies."""
    family = FAMILIES[name]
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5]])
    with torch.no_grad(), prune(model, Front(keep=3), scope="item") as run:
        model(**inputs)
        assert len({span.part for span in run.spans} & {"base"}) == 1
        (base,) = [span for span in run.spans if span.part == "base"]
        assert len(run.spans) > 1
        assert run.kept[0][0].tolist() == list(base.columns[:3])


@dataclass(frozen=True)
class Front(Method):
    """Keeps the first tokens of the first part."""

    name: ClassVar[str] = "front"
    paper: ClassVar[str] = "test"
    year: ClassVar[int] = 0
    kind: ClassVar[str] = "baseline"

    def select(self, view):
        return Selection(torch.arange(self.budget(view)).expand(view.spans, -1))


def test_tokens_that_wait_need_a_stage_that_recalls_them(tiny_models):
    model = tiny_models(FAMILIES["llava"])
    with pytest.raises(BadInput, match=r"sets tokens aside that no later stage recalls"):
        prune(model, "lvlm_csp_cluster")
    with pytest.raises(BadInput, match=r"The stage at 1 recalls tokens, but not after a stage that sets tokens aside"):
        prune(model, "lvlm_csp_scatter")
    with pytest.raises(BadInput, match=r"keep=0.5 of lvlm_csp_scatter must be 1.0"):
        prune(model, "lvlm_csp_scatter", keep=0.5)
    between = [Stage(0, LVLMCSPCluster()), Stage(1, Random(keep=0.5)), Stage(2, LVLMCSPScatter())]
    with pytest.raises(BadInput, match=r"The stage at 1 stands between a stage that sets tokens aside and one"):
        prune(model, between)


def test_methods_without_text_after_the_image_say_so(tiny_models):
    family = FAMILIES["llava"]
    inputs = family.inputs([[4, Picture(4, 6)]])
    inputs["input_ids"], inputs["attention_mask"] = (inputs[k][:, :-1] for k in ("input_ids", "attention_mask"))
    with prune(tiny_models(family), "sparsevlm", keep=0.5), pytest.raises(BadInput, match="needs text after the image"):
        tiny_models(family)(**inputs)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("visionzip", {"contextual": 1.5}, "contextual=1.5 of visionzip must be between 0.0 and 1.0"),
        ("vflowopt", {"cell": 0.5}, "cell=0.5 of vflowopt must be at least 1"),
        ("feather", {"stride": -1}, "stride=-1 of feather must be at least 0"),
        ("holov", {"crops": -2}, "crops=-2 of holov must be at least 0"),
        ("token_transforming", {"temperature": 0.0}, "temperature=0.0 of token_transforming must be above 0"),
        ("dart", {"order": (0, 0)}, "must name each of the"),
        ("dart", {"pivots": -1}, "pivots=-1 of dart must be at least 0"),
        ("prumerge", {"neighbours": -1}, "neighbours=-1 of prumerge must be at least 0"),
        ("agilepruner", {"erank_average": 0.0}, "erank_average=0.0 of agilepruner must be at least 1"),
        ("cdpruner", {"theta": 1.0}, "theta=1.0 of cdpruner must be 0"),
        ("dart", {"order": 3}, "must be a list of values"),
        ("prumerge", {"plus": 1}, "must be true or false"),
        ("agilepruner", {"tau_max": "x"}, "must be a number"),
        ("hired", {"grid": (1, 2)}, r"grid=\(1, 2\) is not \(t, h, w\)"),
        ("random", {"tokens": [1, 2]}, "tokens names 2 tokens, but the signals have 9"),
    ],
)
def test_wrong_options(method, options, message):
    with pytest.raises(BadInput, match=message):
        select(method, **{"keep": 4, "grid": (1, 3, 3)} | options, **signals(9))


@pytest.mark.parametrize("method", ["sparsevlm", "feather", "lvlm_csp", "vflowopt", "prumerge", "dart"])
def test_text_only_prompts_and_batches_of_mixed_kinds(tiny_models, method):
    family = FAMILIES["llava"]
    model = tiny_models(family)
    with torch.no_grad(), prune(model, method):
        model(**family.inputs([[5]]))
        model(**family.inputs(BATCHES["text-only row"]))


@pytest.mark.parametrize("name", ["llava", "llava_next"])
@pytest.mark.parametrize("method", ["visionzip", "prumerge"])
def test_merging_before_the_projector(tiny_models, method, name):
    """As published: encoder features are mixed and then projected; tokens that are not mixed stay to the last bit."""
    family = FAMILIES[name]
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5]])
    seen = []
    first = family.text_model(model).layers[0]
    needs = {"keep": 9, "merge_in": "encoder"}
    with torch.no_grad(), prune(model, method, **needs) as run:
        handle = first.register_forward_hook(lambda m, args, out: seen.append(args[0]))
        model(**inputs)
        handle.remove()
        merges, spans = run.merges[0], run.spans
        kept = run.kept[0][0]
    dense = model(**inputs, output_hidden_states=True).hidden_states[0][0]
    found, (span_signals, _) = {}, listen(model, inputs, 0, Need("vision_features"))
    for (_, sources, own, weights), span in zip(merges, spans, strict=True):
        features = next(f["vision_features"] for f in span_signals if len(f["vision_features"]) == len(sources))
        for column, mix in zip(own.tolist(), weights, strict=True):
            projected = model.base_model.multi_modal_projector((mix @ features)[None])[0]
            found[column] = dense[column] if (mix != 0).sum() == 1 else projected
        assert len(span.columns) == len(sources)
    assert sorted(found) == kept.tolist()
    assert any((mix != 0).sum() > 1 for *_, weights in merges for mix in weights)
    for value in found.values():
        assert (seen[0][0] - value).abs().amax(-1).min() < 1e-5
    with pytest.raises(MissingSignal, match=r"Qwen2-VL does not project its features one by one"):
        prune(tiny_models(FAMILIES["qwen2_vl"]), method, source="received", **needs)
    with pytest.raises(BadInput, match="works before the LLM, at=0, not 2"):
        prune(model, method, at=2, **needs)
