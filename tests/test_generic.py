"""Models that no family file names: by convention, and compared before an answer goes out."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import tokenprune
from eval.census.__main__ import try_type
from eval.census.tiny.base import IMAGE, TEXT
from eval.census.tiny.grids import AUDIO
from eval.census.types import APPLIES_NOT, TINY, types
from tests.draw import cases
from tests.signals import signals
from tokenprune import BadInput, Unsupported, prune, supports
from tokenprune.catalogue.models import model_rows, read_models
from tokenprune.cli import app
from tokenprune.engine.layer_inputs import LayerInputs
from tokenprune.errors import MissingSignal
from tokenprune.families.base import Encoded
from tokenprune.families.generic import Generic
from tokenprune.families.registry import all_families, family_of
from tokenprune.methods.base import View
from tokenprune.methods.registry import all_classes


@pytest.mark.parametrize("name", all_classes())
def test_methods_say_whether_they_read_the_grid(name):
    """Without one, those that declare it refuse and the others choose."""
    method = all_classes()[name]()
    if method.decodes:
        pytest.skip("chooses at decoding steps, from all tokens at once")
    found = {need.signal: signals(40, 1)[need.signal] for need in method.needs}
    view = View(40, 1, (), found, total=40, layers=8)
    if method.reads_grid:
        with pytest.raises(BadInput, match="grid"):
            method.select(view)
    else:
        method.select(view)


def outcome(key):
    return read_models()["types"][key]["outcome"]


@pytest.mark.parametrize("name", ["janus", "gemma4 bidirectional", "gemma4 per-layer", "kimi_k25"])
def test_a_type_without_a_file_is_exact(name):
    """By the conventions alone, against the full-length model with the dropped tokens masked, decoding included."""
    model, inputs = TINY[name].build(), TINY[name].inputs()
    assert not family_of(model).trusted
    for method, at in (("divprune", 0), ("fastv", 2)):
        for positions in ("original", "compact"):
            found = tokenprune.check(model, inputs, method, keep=0.5, at=at, positions=positions)
            assert found.ok, found
            assert max(found.keep_all, found.pruned) < 1e-5


@cases("key", list(TINY), outcome)
def test_the_census_is_what_comes_of_it(key):
    found = try_type(key)
    assert found["outcome"] == outcome(key), found.get("why")
    assert found["why"] == read_models()["types"][key]["why"]
    assert found.get("largest", 0) < 1e-5


def test_every_type_has_its_place_in_the_census():
    census = read_models()
    tried = {key.partition(" ")[0] for key in census["types"]}
    assert tried == set(types()) - set(APPLIES_NOT)
    assert census["apart"] == APPLIES_NOT
    exact = {key.partition(" ")[0] for key in census["types"] if outcome(key) == "exact"}
    assert {t for family in all_families().values() for t in family.model_types} <= exact
    assert len(exact) >= 60
    for key, found in census["types"].items():
        assert found["outcome"] == "exact" or len(found["why"]) > 20, key
    rows = model_rows()
    assert len(rows) == len(census["types"]) + len(APPLIES_NOT)
    assert rows[0][1] not in ("-", "conventions")


def test_the_command_lists_them():
    done = CliRunner().invoke(app, ["list", "--models"])
    assert done.exit_code == 0
    assert "qwen3_vl " in done.output
    assert next(line for line in done.output.splitlines() if line.startswith("mllama ")).split()[1] == "-"


def test_its_first_prompt_is_compared_and_a_wrong_one_refused(monkeypatch):
    model, inputs = TINY["janus"].build(), TINY["janus"].inputs()
    with torch.no_grad(), prune(model, "divprune", keep=0.5) as run:
        with pytest.warns(UserWarning, match="not tested with model type 'janus'.*holds"):
            model(**inputs)
        assert [len(row) for row in run.kept[0]] == [4, 8]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(**inputs)  # the second is not
    wrong = lambda self, model, arguments, first: arguments["input_ids"].clamp(max=0) - 1  # noqa: E731
    broken = lambda *a: wrong(*a).masked_fill(a[2]["input_ids"] == IMAGE, 0)  # noqa: E731
    monkeypatch.setattr(Generic, "blocks", broken)
    told = r"With model type 'janus' this pruned prompt is wrong.*layer 0"
    with torch.no_grad(), prune(model, "divprune", keep=0.5), pytest.raises(Unsupported, match=told):
        model(**inputs)
    assert tokenprune.check(model, inputs, "divprune", keep=0.5).ok is False


def test_what_it_cannot_know_is_refused():
    model = TINY["janus"].build()
    assert supports(model, "divprune") is None
    assert "how its tokens lie in rows" in supports(model, "downsample")
    assert "no family file tells" in supports(model, "visionzip")
    assert "takes no stage before the vision encoder" in supports(model, "uniform", at="pixels")
    for method in ("dycoke", "visionzip"):
        with pytest.raises(MissingSignal, match="janus"):
            prune(model, method, keep=0.5)


def test_what_keeps_to_no_convention_is_told_apart():
    config = LlamaConfig(**TEXT)
    model = LlamaForCausalLM(config)
    with pytest.raises(Unsupported, match=r"model type 'llama', and it does not .*: it has no get_image_features"):
        prune(model, "divprune")
    assert not model._forward_pre_hooks


def test_pictures_of_a_packed_getter_are_told_apart():
    """A getter that gives one tensor for all pictures is cut by their grids."""
    model = TINY["janus"].build()
    family = family_of(model)
    encoded = Encoded("image", {"image_grid_thw": torch.tensor([[1, 4, 6], [1, 2, 4]])}, (8,))
    assert [[part.length for part in parts] for parts in family.items(model, encoded)] == [[6], [2]]
    encoded = Encoded("image", {}, (9, 9, 4))
    assert [[part.length for part in parts] for parts in family.items(model, encoded)] == [[9], [9], [4]]


def test_layers_that_keep_a_state_are_pruned_before_the_language_model(monkeypatch):
    """They see the shorter prompt, and no padding; what no longer could be dropped is refused."""
    model, inputs = TINY["qwen3_5"].build(), TINY["qwen3_5"].inputs()
    assert "linear_attention" in model.config.text_config.layer_types
    for method in ("divprune", "tome"):
        for positions in ("original", "compact"):
            found = tokenprune.check(model, inputs, method, keep=0.5, positions=positions)
            assert found.ok, found
    for method, at in (("fastv", 2), ("fastocr", None)):
        with pytest.raises(Unsupported, match=r"linear_attention layers, which have mixed .* before the LLM: at=0"):
            prune(model, method, keep=0.5, **({} if at is None else {"at": at}))
    with monkeypatch.context() as patch:
        patch.setattr(LayerInputs, "padding_mask", lambda self: None)
        assert not tokenprune.check(model, inputs, "divprune", keep=0.5).ok
    moved = tokenprune.check(model, inputs, "divprune", keep=0.5, positions="compact")
    with monkeypatch.context() as patch:
        patch.setattr("tokenprune.checking.shortened.renumber", lambda positions, *_: (positions, None))
        assert moved.ok
        assert not tokenprune.check(model, inputs, "divprune", keep=0.5, positions="compact").ok


def test_what_layers_are_given_of_tokens_that_the_text_model_never_saw_is_refused():
    model, inputs = TINY["gemma4 per-layer"].build(), TINY["gemma4 per-layer"].inputs()
    told = r"tokens that come back have none of it.*at=1 or later"
    with torch.no_grad(), prune(model, "lvlm_csp", keep=0.3), pytest.raises(Unsupported, match=told):
        model(**inputs)


def test_a_stream_needs_a_family_file():
    with pytest.raises(Unsupported, match="a stream has no first prompt that could be compared"):
        tokenprune.stream(TINY["janus"].build(), None, "uniform", budget=8)


@pytest.mark.parametrize("name", ["qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"])
def test_audio_stays_as_it_is(name):
    """Sound and a picture in one prompt: the picture's tokens go, those of the sound are all there."""
    tiny = TINY[name]
    model, picture = tiny.build(), tiny.inputs()
    mels = model.config.audio_config.num_mel_bins
    sound = {
        "input_features": torch.randn(1, mels, 40, generator=torch.Generator().manual_seed(1)),
        "feature_attention_mask": torch.ones(1, 40, dtype=torch.long),
    }
    rows = len(model.get_audio_features(**sound).last_hidden_state)
    first = [token for token in picture["input_ids"][0].tolist() if token != 0]
    ids = torch.tensor([[1, 7, 8, *[AUDIO] * rows, *first[1:]]])
    one = {
        "pixel_values": picture["pixel_values"][: len(picture["pixel_values"]) // 3],
        "image_grid_thw": picture["image_grid_thw"][:1],
    }
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **one, **sound}
    for positions in ("original", "compact"):
        found = tokenprune.check(model, inputs, "divprune", keep=0.5, positions=positions)
        assert found.ok, found
    with torch.no_grad(), prune(model, "divprune", keep=0.5) as run:
        model(**inputs)
        left = set(run.columns(0)[0].tolist())
        assert {int(c) for c in (ids[0] == AUDIO).nonzero()} <= left
        assert len(run.kept[0][0]) == int((ids == IMAGE).sum()) // 2


def test_the_thinker_of_a_model_that_speaks_is_pruned():
    class Omni(torch.nn.Module):
        def __init__(self, thinker):
            super().__init__()
            self.thinker = thinker

    tiny = TINY["qwen2_5_omni_thinker"]
    omni, inputs = Omni(tiny.build()), tiny.inputs()
    with torch.no_grad(), prune(omni, "divprune", keep=0.5) as run:
        omni.thinker(**inputs)
        assert run.model is omni.thinker
        assert run.report().final_tokens < run.report().tokens
    assert not omni.thinker._forward_pre_hooks
