"""Published operating points as data: every file loads, runs where its layers fit, and wrong ones say what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from tests.laws import BATCHES
from tests.tiny import FAMILIES
from tokenprune import BadInput, prune
from tokenprune.methods.place import in_encoder
from tokenprune.methods.registry import all_methods
from tokenprune.recipes import Recipe, StageSpec, load_recipe, recipe_names

ROOT = Path(__file__).parent.parent
LAYERS = {
    "llava-1.5-7b": 32,
    "llava-next-7b": 32,
    "llava-onevision-7b": 28,
    "llava-video-7b": 28,
    "prismatic-siglip-7b": 32,
    "qwen2-vl-7b": 28,
    "qwen2.5-vl-7b": 28,
    "qwen3-vl-2b": 28,
    "qwen3-vl-8b": 36,
}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads(name):
    recipe = load_recipe(name)
    stages = [stage for stage in recipe.to_stages() if not in_encoder(stage.place)]
    assert all(0 <= (stage.layer if stage.start is None else stage.start) < LAYERS[recipe.model] for stage in stages)
    text = (ROOT / "configs" / f"{name}.yaml").read_text()
    assert text.startswith("#")
    assert recipe.published is not None or "No figure at hand." in text
    assert recipe.name == name
    assert load_recipe(ROOT / "configs" / f"{name}.yaml").stages == recipe.stages


def test_no_recipe_has_the_name_of_a_method():
    assert not set(recipe_names()) & set(all_methods())


def test_the_published_counts():
    """Tokens that LLaVA-1.5 has at the end, for recipes whose papers say so."""
    for name, keep in {
        "divprune_64": 64,
        "visionzip_64": 63,
        "dart_128": 132,
        "adaptinfer_64": 3,
        "holov_128": 128,
    }.items():
        assert load_recipe(name).to_stages()[-1].method.keep == keep
    assert [s.at for s in load_recipe("pyramiddrop_50").to_stages()] == [8, 16, 24]


@pytest.mark.parametrize("name", ["fastv_k2_r50", "divprune_098", "prumerge_plus_adaptive", "hired_20"])
def test_recipes_run(tiny_models, name):
    """By name, by file and as an object, with its position policy; the keyword wins over it."""
    family = FAMILIES["llava_next" if name == "hired_20" else "llava"]
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    kept, recipe = [], load_recipe(name)
    for given in (name, ROOT / "configs" / f"{name}.yaml", str(ROOT / "configs" / f"{name}.yaml"), recipe):
        with torch.no_grad(), prune(model, given) as run:
            model(**inputs)
            kept.append([row.tolist() for row in run.kept[0]])
            assert run.positions == recipe.positions
    assert all(k == kept[0] for k in kept)
    with prune(model, name, positions="original") as run:
        assert run.positions == "original"


WRONG = {
    "a list": ("[1, 2]", "is no mapping with model, positions and stages"),
    "no yaml": ("stages: [", "is no valid YAML"),
    "no stages": ("model: x", "wrong at stages: Field required"),
    "empty": ("model: x\nstages: []", "wrong at stages: List should have at least 1 item"),
    "unknown field": ("model: x\nstage: 3\nstages: [{at: 0, method: random}]", "wrong at stage: Extra inputs"),
    "positions": ("model: x\npositions: gap\nstages: [{at: 0, method: random}]", "wrong at positions: Input should be"),
    "method": ("model: x\nstages: [{at: 0, method: divprun}]", r"Unknown method 'divprun'\. Did you mean 'divprune'"),
    "option": ("model: x\nstages: [{at: 0, method: random, sed: 3}]", r"Did you mean 'seed'"),
    "keep": ("model: x\nstages: [{at: 0, method: random, keep: 1.5}]", "keep=1.5 is above 1"),
    "layer": ("model: x\nstages: [{at: -1, method: random}]", r"wrong at stages\.0\.at"),
    "too early": ("model: x\nstages: [{at: 0, method: fastv}]", "at=0 is too early for fastv"),
    "scope": ("model: x\nstages: [{at: 0, method: random, scope: picture}]", "Unknown scope 'picture'"),
    "published": ("model: x\nstages: [{at: 0, method: random}]\npublished: {gqa: 1}", r"wrong at published\.source"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_recipes(case, tmp_path):
    text, message = WRONG[case]
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message) as error:
        load_recipe(path)
    assert "mine.yaml" in str(error.value)


def test_recipes_that_are_not_there(tiny_models, tmp_path):
    model = tiny_models(FAMILIES["llava"])
    with pytest.raises(BadInput, match=r"There is no recipe file .*none\.yaml"):
        prune(model, tmp_path / "none.yaml")
    with pytest.raises(BadInput, match=r"Unknown method or recipe 'divprune_09'\. Did you mean 'divprune_098'"):
        prune(model, "divprune_09")
    with pytest.raises(BadInput, match="keep cannot be changed beside a recipe"):
        prune(model, "divprune_64", keep=3)
    with pytest.raises(BadInput, match="at= and scope= cannot be changed beside a recipe"):
        prune(model, "divprune_64", at=2)
    with pytest.raises(BadInput, match="past the last layer"):
        prune(model, "pyramiddrop_50")


def test_a_recipe_is_data():
    recipe = Recipe(model="mine", stages=[StageSpec(at=2, method="fastv", keep=0.5), StageSpec(at=0, method="random")])
    assert [s.at for s in recipe.to_stages()] == [0, 2]
    assert yaml.safe_load(recipe.model_dump_json())["stages"][0]["keep"] == 0.5
