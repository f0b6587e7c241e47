"""Pruning before and inside the vision encoder: against the encoder on all rows with those that went hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.encoder_oracle import hidden_rows, rows_of_columns, towers_of
from tests.oracle import oracle_logits
from tests.tiny import FAMILIES, Picture, Video
from tokenprune import BadInput, Stage, Unsupported, check, prune, supports
from tokenprune.core.selection import Selection
from tokenprune.methods.base import Method, View
from tokenprune.methods.fastv import FastV
from tokenprune.methods.pixelprune import PixelPrune
from tokenprune.methods.place import Pixels, Vision
from tokenprune.methods.random import Random
from tokenprune.methods.uniform import Uniform

WHOLE = ("vipllava", "fast_vlm", "perception_lm", "got_ocr2")
ABLE = [name for name in FAMILIES if name not in WHOLE]


def prompt(name: str, video: bool = False) -> dict[str, torch.Tensor]:
    family = FAMILIES[name]
    other = Video(3, 4, 4) if video else Picture(4, 4)
    return family.inputs([[2, Picture(4, 6), 3], [1, other, 5]])


@pytest.mark.parametrize("name", ABLE)
@pytest.mark.parametrize("place", [Pixels(), Vision(1)], ids=str)
def test_keeping_all_changes_nothing(name, place):
    model, inputs = FAMILIES[name].build(), prompt(name)
    with torch.no_grad():
        dense = model(**inputs).logits
        with prune(model, [Stage(place, Uniform(keep=1.0))]):
            assert torch.equal(model(**inputs).logits, dense)
        with prune(model, [Stage(place, Uniform(keep=0.5))]):
            assert not torch.equal(model(**inputs).logits, dense)
        assert torch.equal(model(**inputs).logits, dense)


@dataclass(frozen=True)
class EveryThird(Method):
    """Keeps every third token of a picture, tile or frame."""

    name: ClassVar[str] = "every_third"
    paper: ClassVar[str] = "none"
    year: ClassVar[int] = 0
    kind: ClassVar[str] = "test"
    adaptive: ClassVar[bool] = True

    def select(self, view: View) -> Selection:
        return Selection(torch.arange(0, view.count, 3).expand(view.spans, -1))


def text_of(name, inputs):
    """For each row of the batch the columns of its text."""
    visual = torch.isin(inputs["input_ids"], torch.tensor(FAMILIES[name].placeholder))
    return [(~row).nonzero().flatten() for row in visual]


def rows_gone(name, model, inputs, columns):
    """bool [sequences, rows] of the encoder that no longer count, once only these prompt columns of each row do."""
    family = FAMILIES[name]
    left = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for row, own in enumerate(columns):
        left[row, own[own >= 0]] = True
    rows, shape = rows_of_columns(model, family.text_model(model), inputs)
    if "next" in name or "onevision" in name:  # patches of a tile's padding make no token, but are chosen from too
        gone = torch.ones(shape, dtype=torch.bool)
        gone[:, shape[1] - 36 :: 3] = False
        gone[:, : shape[1] - 36] = False
        return gone
    return (rows.any(2).any(1) & ~(rows & left).any(2).any(1)).view(shape)


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("name", ABLE)
@pytest.mark.parametrize("place", [Pixels(), Vision(1)], ids=str)
def test_the_oracle(name, place, positions):
    family, model, inputs = FAMILIES[name], FAMILIES[name].build("eager"), prompt(name)
    with torch.no_grad():
        with prune(model, [Stage(place, EveryThird())], positions=positions) as run:
            pruned = model(**inputs).logits
            columns = run.columns(0)
        gone = rows_gone(name, model, inputs, columns)
        assert gone.any()
        shown = [own[own >= 0] for own in columns]
        visual = torch.isin(inputs["input_ids"], torch.tensor(family.placeholder))
        alive = [own[visual[row, own]] for row, own in enumerate(shown)]
        with hidden_rows(model, gone, place.block):
            expected = oracle_logits(family, model, inputs, {0: alive}, compact=positions == "compact")
    for row, own in enumerate(shown):
        torch.testing.assert_close(pruned[row, own], expected[row, own], atol=1e-4, rtol=0)


@dataclass(frozen=True)
class NotTheFirst(Method):
    """Drops the whole first frame of a video, and keeps all of the others."""

    name: ClassVar[str] = "not_the_first"
    paper: ClassVar[str] = "none"
    year: ClassVar[int] = 0
    kind: ClassVar[str] = "test"
    adaptive: ClassVar[bool] = True
    over_frames: ClassVar[bool] = True

    def select(self, view: View) -> Selection:
        t, h, w = view.grid
        return Selection(torch.arange(h * w if t > 1 else 0, view.count).expand(view.spans, -1))


@dataclass(frozen=True)
class Ragged(Method):
    """Keeps a different number of tokens of every picture, tile or frame that it sees together."""

    name: ClassVar[str] = "ragged"
    paper: ClassVar[str] = "none"
    year: ClassVar[int] = 0
    kind: ClassVar[str] = "test"
    adaptive: ClassVar[bool] = True

    def select(self, view: View) -> Selection:
        keep = torch.arange(view.count) % 5 <= torch.arange(view.spans)[:, None] % 3
        return Selection.of(keep)


def judged(name, model, inputs, stages, block):
    """A pruned prompt against the encoder with hidden rows and the LLM with hidden columns."""
    family = FAMILIES[name]
    with torch.no_grad():
        with prune(model, stages) as run:
            pruned = model(**inputs).logits
            columns = run.columns(0)
        gone = rows_gone(name, model, inputs, columns)
        visual = torch.isin(inputs["input_ids"], torch.tensor(family.placeholder))
        alive = [own[own >= 0][visual[row, own[own >= 0]]] for row, own in enumerate(columns)]
        with hidden_rows(model, gone, block):
            expected = oracle_logits(family, model, inputs, {0: alive})
    for row, own in enumerate(columns):
        shown = own[own >= 0]
        torch.testing.assert_close(pruned[row, shown], expected[row, shown], atol=1e-4, rtol=0)


PACKED = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "exaone4_5", "video_llama_3"]


@pytest.mark.parametrize("name", [*PACKED, "video_llava", "llava_next_video"])
@pytest.mark.parametrize("place", [Pixels(), Vision(1)], ids=str)
def test_a_frame_can_lose_everything(name, place):
    family, model = FAMILIES[name], FAMILIES[name].build("eager")
    inputs = family.inputs([[1, Video(3, 4, 4), 5]])
    if name == "llava_next_video":  # its rows cannot be told by trial
        with torch.no_grad(), prune(model, [Stage(place, NotTheFirst())]) as run:
            assert model(**inputs).logits.isfinite().all()
            assert run.report().final_tokens == run.report().tokens * 2 // 3
        return
    judged(name, model, inputs, [Stage(place, NotTheFirst())], place.block)


@pytest.mark.parametrize(
    "name", ["llava", "llava-siglip", "paligemma", "gemma3", "internvl", "qwen2_vl", "pixtral", "ovis2", "paddleocr_vl"]
)
def test_pictures_of_one_call_may_keep_different_numbers(name):
    judged(name, FAMILIES[name].build("eager"), prompt(name), [Stage(Vision(1), Ragged())], 1)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm", "gemma3"])
def test_stages_of_both_sides(name):
    stages = [Stage(Pixels(), Random(keep=0.6)), Stage(0, Uniform(keep=0.7)), Stage(3, FastV(keep=0.5))]
    family, model, inputs = FAMILIES[name], FAMILIES[name].build("eager"), prompt(name)
    with torch.no_grad(), prune(model, stages) as run:
        pruned = model(**inputs).logits
        kept, columns = run.kept, run.columns(5)
    encoded = [torch.cat([own, text]) for own, text in zip(kept[0], text_of(name, inputs), strict=True)]
    with torch.no_grad(), hidden_rows(model, rows_gone(name, model, inputs, encoded), 0):
        expected = oracle_logits(family, model, inputs, {0: kept[1], 3: kept[2]})
    for row, own in enumerate(columns):
        shown = own[own >= 0]
        torch.testing.assert_close(pruned[row, shown], expected[row, shown], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ABLE)
def test_two_pictures_in_one_call_are_two_calls(name):
    family, model = FAMILIES[name], FAMILIES[name].build()
    rows = [[2, Picture(4, 6), 3], [1, Picture(4, 4), 5]]
    with torch.no_grad(), prune(model, [Stage(Vision(1), Random(keep=0.5))]):
        together = model(**family.inputs(rows)).logits
        for i, row in enumerate(rows[: 1 if family.counts_images else 2]):
            alone = model(**family.inputs([row], first=i)).logits[0]
            torch.testing.assert_close(together[i, -len(alone) :], alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_generate_and_what_comes_after(name):
    model, inputs = FAMILIES[name].build(), prompt(name)
    stages = [Stage("pixels", Random(keep=0.5)), Stage(2, FastV(keep=0.5))]
    model(**inputs)  # transformers puts hooks of its own on where it first records outputs
    before = {n: (len(m._forward_hooks), len(m._forward_pre_hooks), {*m.__dict__}) for n, m in model.named_modules()}
    for positions in ("original", "compact"):
        found = check(model, inputs, stages, positions=positions)
        assert found.ok, str(found)
    after = {n: (len(m._forward_hooks), len(m._forward_pre_hooks), {*m.__dict__}) for n, m in model.named_modules()}
    for name, own in before.items():
        assert own == after[name], (name, own[2] ^ after[name][2])


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "exaone4_5"])
@pytest.mark.parametrize("keep", [0.25, 1.0])
def test_flops_are_those_that_torch_counts(name, keep):
    model, inputs = FAMILIES[name].build("eager"), FAMILIES[name].inputs([[2, Picture(4, 4), 3]])
    blocks = towers_of(model)[0]
    with torch.no_grad(), prune(model, [Stage(Vision(1), Uniform(keep=keep))]) as run:
        with FlopCounterMode(display=False) as counter:
            model(**inputs)
        counts = counter.get_flop_counts()
        names = {module: name for name, module in model.named_modules()}
        counted = sum(
            sum(ops.values())
            for block in blocks
            for key, ops in counts.items()
            if key.endswith(names[block]) and key.count(names[block])
        )
    assert run.report().encoder.flops == counted


def test_the_pixels_of_a_group_are_its_own():
    """A picture of one flat colour but for one group: that group, and the first, are all that is kept."""
    for name in ABLE:
        family, model = FAMILIES[name], FAMILIES[name].build()
        inputs = family.inputs([[2, Picture(4, 6), 3]])
        pixels = next(value for key, value in inputs.items() if "pixel_values" in key)
        pixels.fill_(1.0)
        with torch.no_grad(), prune(model, "pixelprune") as run:
            model(**inputs)
            flat = run.report().final_tokens
            pixels.view(-1)[0] = 3.0
            model(**inputs)
            assert run.report().final_tokens in (flat, flat + 1, flat + 2), name


@pytest.mark.parametrize(
    ("stages", "error", "words"),
    [
        ([Stage(Vision(9), Uniform(keep=0.5))], BadInput, "9 is no block of the vision encoder"),
        ([Stage("pixels", Uniform(keep=0))], BadInput, "keep=0 of uniform leaves nothing of a picture"),
    ],
)
def test_bad_stages(stages, error, words):
    model = FAMILIES["qwen3_vl"].build()
    with pytest.raises(error, match=words), prune(model, stages):
        model(**prompt("qwen3_vl"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Stage("pixels", FastV()), "fastv cannot stand before the vision encoder: it reads attention_row"),
        (lambda: Stage(0, PixelPrune()), "pixelprune cannot stand before the LLM: it reads pixels.*at='pixels'"),
        (lambda: Stage("vision", Uniform()), "at='vision' is no place.*vision:8"),
        (lambda: Stage({"vision": -1}, Uniform()), "is not a block"),
        (lambda: Stage("pixels", Uniform(), scope="item"), "scope= do not go with a stage before the vision encoder"),
        (lambda: Stage("pixels", Uniform(), start=2), "start= and scope= do not go"),
        (lambda: Stage("pixels", 3), "3 is not a method"),
    ],
)
def test_places_that_do_not_fit(make, words):
    with pytest.raises(BadInput, match=words):
        make()


@pytest.mark.parametrize("name", WHOLE)
def test_encoders_that_stay_whole_say_why(name):
    model = FAMILIES[name].build()
    with pytest.raises(Unsupported, match=r"takes no stage before the vision encoder: .* Give it a layer of the LLM"):
        prune(model, "uniform", keep=0.5, at="pixels")
    assert "takes no stage" in supports(model, "pixelprune")
