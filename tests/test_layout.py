"""Spans and the saliency signal lie where the tokens of the picture lie: grids, tiles, frames, separators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from tests.draw import cases
from tests.laws import by_anchor, cells
from tests.tiny import BREAK, FAMILIES, IMAGE, VIDEO, Picture, Video
from tests.tiny.base import SIDE
from tokenprune import Selection, prune
from tokenprune.families import registry
from tokenprune.families.llava import Llava
from tokenprune.methods.base import Method, Need
from tokenprune.signals import encoder

pytestmark = pytest.mark.laws
SEEN: list[dict] = []


@dataclass(frozen=True)
class Spy(Method):
    """Notes its signals and keeps everything."""

    name: ClassVar[str] = "spy"
    paper: ClassVar[str] = "test"
    year: ClassVar[int] = 0
    kind: ClassVar[str] = "baseline"

    @property
    def needs(self):
        return (Need("features"), Need("saliency", "received"))

    def select(self, view):
        SEEN.append(view.signals)
        return Selection(torch.arange(view.count).expand(view.spans, -1))


def spans_of(model, inputs):
    with torch.no_grad(), prune(model, "uniform", keep=0.5) as run:
        model(**inputs)
        return run.spans


def test_grids_and_columns(family, tiny_models):
    """Every placeholder belongs to one span or is a separator, and grids are those of the pictures."""
    parts = [Picture(4, 6), Picture(3, 4), Picture(4, 3)]
    rows = [[3, parts[0], 5], [2, parts[1], 4, parts[2], 6], [9]]
    inputs = family.inputs(rows)
    spans = spans_of(tiny_models(family), inputs)
    expected = [
        (i, grid) for i, row in enumerate(rows) for p in row if isinstance(p, Picture) for grid in family.spans(p)
    ]
    assert [(s.row, s.grid) for s in spans] == expected
    found = torch.zeros_like(inputs["input_ids"])
    for span in spans:
        assert list(span.columns) == sorted(span.columns)
        found[span.row, list(span.columns)] += 1
        for separator in span.separators:
            found[span.row, separator.column] += 1
    assert torch.equal(found == 1, torch.isin(inputs["input_ids"], torch.tensor([IMAGE, BREAK])))
    assert found.max() == 1


def test_grids_of_videos(video_family, tiny_models):
    rows = [[3, Video(2, 3, 2), 5], [2, Video(2, 3, 4), 4, Video(2, 2, 3), 6]]
    inputs = video_family.inputs(rows)
    spans = spans_of(tiny_models(video_family), inputs)
    expected = [
        (i, grid) for i, row in enumerate(rows) for p in row if isinstance(p, Video) for grid in video_family.spans(p)
    ]
    assert [(s.row, s.grid) for s in spans] == expected
    assert {s.media for s in spans} == {"video"}
    own = IMAGE if video_family.name.startswith("glm4") else VIDEO
    inside = sum(s.count + len(s.separators) for s in spans)
    assert inside == int((inputs["input_ids"] == own).sum())


def test_base_images_and_tiles(tiny_models):
    names = {}
    for name in ("llava", "llava_next", "internvl", "smolvlm", "idefics3", "ovis2", "aya_vision", "cohere2_vision"):
        family = FAMILIES[name]
        spans = spans_of(tiny_models(family), family.inputs([[3, Picture(4, 6), 5, Picture(3, 4), 2]]))
        names[name] = [(s.part, s.item) for s in spans]
    assert names["llava"] == [("image", 0), ("image", 1)]
    assert names["llava_next"] == [("base", 0), ("tile", 0), ("base", 1), ("tile", 1)]
    assert [n for n, _ in names["internvl"]] == ["tile", "tile", "base", "image"]
    assert [n for n, _ in names["smolvlm"]] == [n for n, _ in names["idefics3"]] == ["tile", "tile", "base", "base"]
    assert names["ovis2"] == [("base", 0), ("tile", 0), ("tile", 0), ("image", 1)]
    assert names["aya_vision"] == [("tile", 0), ("tile", 0), ("base", 0), ("base", 1)]
    assert names["cohere2_vision"] == [("tile", 0), ("tile", 0), ("base", 0), ("image", 1)]


def test_newlines_close_their_rows(tiny_models):
    family = FAMILIES["llava_next"]
    base, tiles = spans_of(tiny_models(family), family.inputs([[3, Picture(4, 6), 5]]))
    first = 1 + 3 + 1  # BOS, three words, the start of the image
    assert base.columns == tuple(range(first, first + SIDE * SIDE))
    assert not base.separators
    assert tiles.grid == (1, 8, 12)
    start = first + SIDE * SIDE
    assert [s.column for s in tiles.separators] == [start + 13 * row + 12 for row in range(8)]
    assert [s[1:] for s in tiles.separators] == [(12 * row, 12 * row + 12) for row in range(8)]


def test_a_newline_goes_with_its_row(tiny_models):
    """A method that keeps the first row alone leaves one newline in the cache."""
    family = FAMILIES["llava_next"]
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5]])
    length = inputs["input_ids"].shape[1]
    with torch.no_grad(), prune(model, FirstRow(keep=0)) as run:
        out = model(**inputs, use_cache=True)
    base, tiles = run.spans
    gone = (base.count - 6) + (tiles.count - 12) + 7
    assert out.past_key_values.layers[0].keys.shape[2] == length - gone


@dataclass(frozen=True)
class FirstRow(Method):
    """Keeps the first row of the grid."""

    name: ClassVar[str] = "first row"
    paper: ClassVar[str] = "test"
    year: ClassVar[int] = 0
    kind: ClassVar[str] = "baseline"

    def select(self, view):
        return Selection(torch.arange(view.grid[2]).expand(view.spans, -1))


def test_frames_keep_their_class_token(tiny_models):
    family = FAMILIES["video_llava"]
    (span,) = spans_of(tiny_models(family), family.inputs([[3, Video(2, 3, 2), 5]]))
    first = 1 + 3 + 1
    assert [tuple(s) for s in span.separators] == [(first, 0, 36), (first + 37, 36, 72)]


def test_break_tokens_between_rows(tiny_models):
    family = FAMILIES["pixtral"]
    (span,) = spans_of(tiny_models(family), family.inputs([[3, Picture(3, 4), 5]]))
    first = 1 + 3 + 1
    assert [tuple(s) for s in span.separators] == [(first + 4, 0, 4), (first + 9, 4, 8)]


def test_a_video_across_timestamps_is_one_span(tiny_models):
    family = FAMILIES["qwen3_vl"]
    (span,) = spans_of(tiny_models(family), family.inputs([[3, Video(3, 2, 2), 5]]))
    assert span.grid == (3, 2, 2)
    gaps = [b - a for a, b in zip(span.columns, span.columns[1:], strict=False)]
    assert [g for g in gaps if g > 1] == [5, 6]  # end, stamps, start


def test_onevision_several_images_are_not_tiled(tiny_models):
    """`batch_num_images` tells the model that the pictures of a row come untiled, each with one newline."""
    family = FAMILIES["llava_onevision"]
    model = tiny_models(family)
    ids = torch.tensor([[1, 5, *[IMAGE] * 37, 6, *[IMAGE] * 37, 7]])
    made = torch.Generator().manual_seed(0)
    inputs = {
        "input_ids": ids,
        "pixel_values": torch.randn(2, 1, 3, 24, 24, generator=made),
        "image_sizes": torch.tensor([[32, 48], [24, 32]]),
        "batch_num_images": torch.tensor([2]),
    }
    first, second = spans_of(model, inputs)
    assert (first.grid, second.grid) == ((1, 6, 6), (1, 6, 6))
    assert [tuple(s) for s in (*first.separators, *second.separators)] == [(38, 0, 36), (76, 0, 36)]


def test_onevision_shrinks_many_tiles():
    """More patches than `anyres_max_N` allows are scaled down; the grid is the scaled one."""
    family = FAMILIES["llava_onevision"]
    model = family.build()
    model.config.vision_aspect_ratio = "anyres_max_1"
    made = torch.Generator().manual_seed(0)
    pixels = {"pixel_values": torch.randn(1, 5, 3, 24, 24, generator=made), "image_sizes": torch.tensor([[48, 48]])}
    tokens = SIDE * SIDE + 6 * 7
    inputs = {"input_ids": torch.tensor([[1, 5, *[IMAGE] * tokens, 6]]), **pixels}
    with torch.no_grad(), prune(model, Spy()) as run:
        model(**inputs)
    assert [s.grid for s in run.spans] == [(1, 6, 6), (1, 6, 6)]


@cases(
    "family, media",
    [
        pytest.param(cell.values[0], media, id=f"{cell.values[0].name}-{media}")
        for media in ("image", "video")
        for cell in cells(["fopru"], video=media == "video")
    ],
    lambda family, media: (by_anchor(family), media),
)
def test_saliency_follows_the_features(family, monkeypatch, media):
    """A change in one spot of the picture shows at the same token in the features and in the saliency.

    In place of attention the tap gives how far each key has moved since the unchanged picture.
    """
    still: list[torch.Tensor] = []
    moved: list[torch.Tensor] = []

    def movement(query, key, *rest):
        moved.append(key)
        if len(moved) <= len(still):
            return (key - still[len(moved) - 1]).norm(dim=-1).mean(1)
        return torch.ones(key.shape[0], key.shape[2])

    monkeypatch.setitem(encoder.SALIENCY, "received", movement)
    model = family.build()
    # Pixtral's saliency is a share of its own image, and an image in which nothing moved has none.
    more = [] if family.name in ("pixtral", "mistral3") else [Picture(3, 4), 2]
    row = [3, Picture(4, 6), 5, *more] if media == "image" else [3, Video(2, 3, 4), 5]
    inputs = family.inputs([row])
    name = "pixel_values" if media == "image" else "pixel_values_videos"
    before = signals(model, inputs)
    still, clear = list(moved), 0
    for seed in range(12):
        moved.clear()
        after = signals(model, inputs | {name: dented(inputs[name], torch.Generator().manual_seed(seed))})
        pairs = zip(before, after, strict=True)
        features = torch.cat([(b["features"] - a["features"]).norm(dim=-1).flatten() for a, b in pairs])
        saliency = torch.cat([b["saliency"].flatten() for b in after])
        largest, second = features.topk(2).values.tolist()
        if largest > 1.5 * second:  # a spot on the edge of two tokens or in the padding shows nowhere clearly
            clear += 1
            assert saliency.argmax() == features.argmax(), f"seed {seed}"
    assert clear >= 3


def signals(model, inputs):
    SEEN.clear()
    with torch.no_grad(), prune(model, Spy()):
        model(**inputs)
    return list(SEEN)


def dented(pixels, made):
    """The pixels with one patch of 4 x 4 set to something loud."""
    changed = pixels.clone()
    loud = 6 * torch.randn(3, 4, 4, generator=made)
    if pixels.ndim == 2:
        patch = int(torch.randint(len(pixels), (), generator=made))
        changed[patch] = 6 * torch.randn(pixels.shape[1], generator=made)
        return changed
    flat = changed.flatten(0, -4)
    filled = flat.flatten(1).abs().amax(1).nonzero().flatten()
    image = int(filled[torch.randint(len(filled), (), generator=made)])
    y, x = (4 * int(torch.randint(n // 4, (), generator=made)) for n in pixels.shape[-2:])
    flat[image, :, y : y + 4, x : x + 4] = loud
    return changed


def test_a_family_from_another_package(monkeypatch, tiny_models):
    """Found by its entry point, and preferred to ours of the same model type."""

    class Other(Llava):
        name = "Other"
        model_types = ("llava",)

    class Entry:
        def load(self):
            return Other

    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry()] if group == registry.GROUP else [])
    registry.all_families.cache_clear()
    try:
        family = FAMILIES["llava"]
        with torch.no_grad(), prune(tiny_models(family), "uniform", keep=0.5) as run:
            assert run.family.name == "Other"
            run.model(**family.inputs([[3, Picture(4, 6), 5]]))
            assert len(run.kept[0][0]) == 18
    finally:
        monkeypatch.undo()
        registry.all_families.cache_clear()


def test_the_old_name_of_pool_patches_goes_on(monkeypatch):
    """In families of other packages, for one release."""

    class Older(Llava):
        name = "Older"
        model_types = ("older",)

        def place(self, model, encoded, calls):
            return [calls]

    class Entry:
        def load(self):
            return Older

    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry()] if group == registry.GROUP else [])
    registry.all_families.cache_clear()
    try:
        with pytest.warns(DeprecationWarning, match=r"Older: Family\.place is pool_patches now"):
            found = registry.all_families()["Older"]
        assert found.pool_patches(None, None, [1]) == [[1]]
    finally:
        monkeypatch.undo()
        registry.all_families.cache_clear()


def test_a_wrapper_that_was_there_before_stays(tiny_models):
    base = tiny_models(FAMILIES["llava"]).model
    own = base.get_image_features
    base.get_image_features = own
    try:
        with prune(tiny_models(FAMILIES["llava"]), "uniform", keep=0.5):
            assert base.__dict__["get_image_features"] is not own
        assert base.__dict__["get_image_features"] is own
    finally:
        del base.__dict__["get_image_features"]
