"""Law 8: what cannot be right is refused, with the thing named and what to do."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from tests.draw import cases
from tests.laws import BATCHES, GREEDY, by_anchor, cells, works
from tests.tiny import FAMILIES, IMAGE, VIDEO, Picture, Video
from tests.tiny.base import TEXT, TOWER
from tokenprune import BadInput, Selection, Uniform, Unsupported, prune
from tokenprune.methods.base import Method

pytestmark = pytest.mark.laws


def test_an_unsupported_model():
    model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(Unsupported) as error:
        prune(model, "uniform", keep=0.5)
    assert str(error.value) == (
        "No family file names model type 'bert', and it does not keep to the conventions by which others are pruned: "
        "it has no get_image_features. A family file would say where its parts are; `tokenprune list --models` has the "
        "types that are pruned."
    )
    with pytest.raises(Unsupported, match="an object of type Linear"):
        prune(torch.nn.Linear(2, 2), "uniform", keep=0.5)


def test_a_video_that_its_processor_has_thinned_out():
    family = FAMILIES["video_llama_3"]
    model, inputs = family.build(), family.inputs([[3, Video(2, 3, 2), 5]])
    left = torch.ones(12, dtype=torch.bool)
    with torch.no_grad(), prune(model, "uniform", keep=0.5) as run:
        model(**inputs, video_compression_mask=left)
        assert len(run.kept[0][0]) == 6
        left[7:] = False
        ids = inputs["input_ids"][:, :-5]
        with pytest.raises(Unsupported, match=r"left out 5 of 12 tokens .* use_token_compression=False"):
            model(**inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, video_compression_mask=left)


def test_layers_that_keep_no_keys():
    model = FAMILIES["qwen2_5_vl"].build()
    model.config.text_config.layer_types[2] = "linear_attention"
    with pytest.raises(Unsupported) as error:
        prune(model, "uniform", keep=0.5)
    assert (
        str(error.value)
        == "This model has linear_attention layers, which cannot be pruned: they keep no key per token."
    )


def test_towers_and_features_that_are_no_square():
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER),
        text_config=LlamaConfig(**TEXT),
        vision_feature_select_strategy="full",
        image_token_index=IMAGE,
    )
    model = LlavaForConditionalGeneration(config)
    with pytest.raises(Unsupported, match="does not give a square of patches"):
        prune(model, "uniform", keep=0.5)
    config.vision_config.model_type = "vit"
    with pytest.raises(Unsupported, match=r"LLaVA-1.5 with a 'vit' tower\. Supported towers: clip_vision_model"):
        prune(model, "uniform", keep=0.5)


def test_a_prepared_mask_and_embeddings(family, tiny_models):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    length = inputs["input_ids"].shape[1]
    with torch.no_grad(), prune(model, "uniform", keep=0.5):
        with pytest.raises(Unsupported, match="2-D attention_mask"):
            model(**inputs | {"attention_mask": torch.ones(1, 1, length, length).tril() > 0})
        with pytest.raises(Unsupported, match="Pass input_ids, not inputs_embeds"):
            model(**inputs | {"input_ids": None, "inputs_embeds": torch.zeros(1, length, 64)})
        with pytest.raises(Unsupported, match="has to see the images encoded"):
            model(**inputs | {"mm_encoder_outputs": torch.zeros(1, 36, 64), "pixel_values": None})


@pytest.mark.parametrize("size", [10, 11, 17])
def test_chunked_prefill_that_cuts_an_image(family, tiny_models, size):
    """Also where the cut runs between two rows of the grid, so that a piece looks like a smaller image."""
    if "chunks" in family.fails:
        pytest.skip("transformers itself fails")
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5, Picture(4, 6), 3]])
    with prune(model, "uniform", keep=0.5), pytest.raises((Unsupported, ValueError)) as error:
        model.generate(**inputs, **GREEDY, prefill_chunk_size=size)
    # transformers itself refuses chunks where it cannot encode beforehand.
    assert "prefill in one piece" in str(error.value) or "cannot split the raw multimodal inputs" in str(error.value)


def test_chunked_prefill_after_the_question_was_read(tiny_models):
    """A text-guided method would have chosen with the end of a chunk in view instead of the question."""
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 30]])
    with prune(model, "fastv", keep=0.5), pytest.raises(Unsupported, match="earlier piece of the prompt"):
        model.generate(**inputs, **GREEDY, prefill_chunk_size=50)
    with prune(model, "divprune", keep=0.5):
        whole = model.generate(**inputs, **GREEDY)
        assert torch.equal(model.generate(**inputs, **GREEDY, prefill_chunk_size=50), whole)


@cases("family, plan", cells(["divprune", "fastv", "fopru"], everywhere=["fastv"]), by_anchor)
def test_torch_compile(family, plan):
    """With every kind of signal: never a silent wrong answer."""
    model, inputs = family.build(), family.inputs(BATCHES["one"])
    with prune(model, plan, keep=0.5), pytest.raises(Exception, match="compiled model cannot be pruned"):
        torch.compile(model, backend="eager")(**inputs)
    torch._dynamo.reset()


def test_compiled_before_pruning():
    family = FAMILIES["llava"]
    with pytest.raises(Unsupported, match="compiled model cannot be pruned"):
        prune(torch.compile(family.build(), backend="eager"), "uniform", keep=0.5)
    layers = "model.language_model.layers"
    for place in ["", "model", "model.language_model", f"{layers}.3", f"{layers}.1.self_attn", "lm_head"]:
        model = family.build()
        model.get_submodule(place).compile(backend="eager")
        with pytest.raises(Unsupported, match="compiled model cannot be pruned"):
            prune(model, "fastv", keep=0.5)
        torch._dynamo.reset()


@pytest.mark.parametrize("place", ["", "model", "model.language_model", "model.language_model.layers.3"])
def test_compiled_after_pruning(place):
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs(BATCHES["one"])
    with prune(model, "fastv", keep=0.5):
        model.get_submodule(place).compile(backend="eager")
        with pytest.raises(Exception, match="compiled model cannot be pruned"):
            model(**inputs)
    torch._dynamo.reset()


@pytest.mark.parametrize("place", ["layers.1", "layers.1.self_attn", "layers.1.mlp"])
def test_compiled_parts_that_no_hook_is_on(place):
    """Where a part is compiled after prune(), what it gives is the same, or it is refused."""
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs(BATCHES["one"])
    with torch.no_grad(), prune(model, "fastv", keep=0.5) as run:
        expected = model(**inputs).logits
        kept = run.kept[0][0].tolist()
        model.get_submodule(f"model.language_model.{place}").compile(backend="eager")
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=0)
        assert run.kept[0][0].tolist() == kept
    torch._dynamo.reset()


def test_tensor_parallel_models():
    model = FAMILIES["llava"].build()
    model._tp_size = 2
    if model.tp_size != 2:
        pytest.skip("this version of transformers keeps the number of tensor-parallel ranks elsewhere")
    with pytest.raises(Unsupported, match=r"runs tensor-parallel over 2 processes.*device_map='auto'"):
        prune(model, "fastv", keep=0.5)


def test_continuous_batching():
    model = FAMILIES["llava"].build()
    model.model.language_model.config._attn_implementation = "paged|sdpa"
    with prune(model, "fastv", keep=0.5), pytest.raises(Unsupported, match="Continuous batching"):
        model(**FAMILIES["llava"].inputs(BATCHES["one"]))


def test_pixels_without_a_placeholder(family, tiny_models):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    inputs["input_ids"][inputs["input_ids"] == IMAGE] = 7
    with prune(model, "uniform", keep=0.5), pytest.raises(BadInput) as error:
        model(**inputs)
    assert str(error.value) == (
        "There is no image in the prompt: pixel_values was given, but input_ids has no placeholder."
    )


def test_images_and_videos_that_share_a_placeholder():
    """GLM-4V's own model cannot tell them apart."""
    family = FAMILIES["glm4v"]
    model, inputs = family.build(), family.inputs([[3, Picture(3, 4), 2, Video(2, 3, 4), 5]])
    with prune(model, "uniform", keep=0.5), pytest.raises((Unsupported, ValueError), match=r"tokens"):
        model(**inputs)


def test_a_layout_that_is_not_what_the_encoder_made(tiny_models):
    """An encoder that gives another number of tokens than the family expects is found out at once."""
    family = FAMILIES["llava_next_video"]
    model, inputs = family.build(), family.inputs([[3, Video(2, 3, 3), 5]])
    model.config.spatial_pool_stride = 3
    with prune(model, "uniform", keep=0.5), pytest.raises(Unsupported, match="gives 8 tokens, but the encoder made 18"):
        model(**inputs)


def test_a_method_that_breaks_the_contract(family, tiny_models):
    """A user's own method runs like ours, and a wrong index is refused instead of giving a wrong answer."""
    model, inputs = tiny_models(family), family.inputs([[3, Picture(4, 6), 5]])
    spans = family.spans(Picture(4, 6))
    answers = {
        "descending": torch.tensor([[3, 1]]),
        "twice": torch.tensor([[1, 1]]),
        "too far": torch.tensor([[1, 999]]),
        "negative": torch.tensor([[-1, 2]]),
        "type": torch.tensor([[1.0, 2.0]]),
        "spans": torch.tensor([[1, 2]] * (len(spans) + 1)),
    }
    for index in answers.values():
        with pytest.raises(BadInput, match="The method 'given' returned a wrong index"), prune(model, Given(index)):
            model(**inputs)
    with torch.no_grad(), prune(model, Given(torch.tensor([[1, 4]]))) as run:
        model(**inputs)
        assert len(run.kept[0][0]) == 2 * len(spans)
    with torch.no_grad(), prune(model, Given(torch.tensor([[1, 4]]), merge=1)) as run:
        model(**inputs)
        assert len(run.merges[0]) == len(spans)
        row, sources, kept, weights = run.merges[0][0]
        assert row == 0
        assert sources[[1, 4]].equal(kept)
        assert weights.shape == (2, len(sources))
    with (
        pytest.raises(BadInput, match=r"'given' returned weights of shape"),
        prune(model, Given(torch.tensor([[1, 4]]), merge=2)),
    ):
        model(**inputs)


class Given(Method):
    """Returns the index it was built with, for each span of a group."""

    name, paper, year, kind = "given", "test", 0, "baseline"

    def __init__(self, index, merge=0):
        super().__init__()
        object.__setattr__(self, "index", index)
        object.__setattr__(self, "merge", merge)

    def select(self, view):
        index = self.index.expand(view.spans, -1) if len(self.index) == 1 else self.index
        weights = torch.full((*index.shape, view.count * self.merge), 1 / view.count) if self.merge else None
        return Selection(index, weights)


def test_a_refused_prompt_leaves_nothing_behind(family, tiny_models):
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    plan = "fopru" if works(family, "fopru") else "divprune"
    with torch.no_grad(), prune(model, plan, keep=0.5) as run:
        model(**inputs)
        expected = run.kept[0][0].tolist()
        if "chunks" not in family.fails:
            with pytest.raises((Unsupported, ValueError)):
                model.generate(**inputs, **GREEDY, prefill_chunk_size=10)
        getter = model.model.__dict__["get_image_features"]
        model.model.__dict__["get_image_features"] = lambda *a, **k: getter(*a, **k) and 1 / 0
        with pytest.raises(ZeroDivisionError):
            model(**inputs)
        model.model.__dict__["get_image_features"] = getter
        model(**inputs)
        assert run.kept[0][0].tolist() == expected


def test_stage_places(family, tiny_models):
    model = tiny_models(family)
    with pytest.raises(BadInput, match="past the last layer: this model has layers 0 to 5"):
        prune(model, Uniform(keep=0.5), at=6)
    with pytest.raises(BadInput, match=r"at=0 is too early for fastv.*Give at=1 or later"):
        prune(model, "fastv", at=0)
    with pytest.raises(BadInput, match="at=-1 is not a layer"):
        prune(model, "uniform", at=-1)
    with pytest.raises(BadInput, match="No stages"):
        prune(model, [])
    with pytest.raises(BadInput, match=r"Unknown positions 'orignal'. Did you mean 'original'\?"):
        prune(model, "uniform", positions="orignal")


def test_placeholders_that_the_model_generates_are_text(family, tiny_models):
    """Without pixels a placeholder is a token like any other."""
    model = tiny_models(family)
    inputs = family.inputs([[5]])
    inputs["input_ids"][0, -1] = VIDEO if family.has_video else IMAGE
    with torch.no_grad(), prune(model, "uniform", keep=0.5):
        model(**inputs)
