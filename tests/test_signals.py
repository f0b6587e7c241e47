"""What methods read is what the model itself computes: attention rows, keys, hidden states, encoder features."""

from __future__ import annotations

import pytest
import torch

from tests.draw import cases
from tests.laws import BATCHES, FAMILY, by_anchor, times
from tests.signals import listen
from tests.tiny import FAMILIES, Picture
from tokenprune import BadInput, FastV, MissingSignal, Stage, prune, select
from tokenprune.core.pixels import grey_entropy
from tokenprune.engine import passes as engine
from tokenprune.signals.need import Need

pytestmark = pytest.mark.laws


def ordered(rows):
    """Rows of several spans side by side, sorted, since spans of one shape are heard together."""
    return torch.cat(list(rows), dim=-1).sort(dim=-1).values


@cases("family, at", times(FAMILY, [1, 2, 3]), by_anchor)
def test_the_row_is_the_models_own(family, tiny_models, at):
    """What FastV reads equals the weights that eager attention itself computes, windows and two-way blocks included."""
    model, inputs = tiny_models(family, "eager"), family.inputs(BATCHES["one"])
    found, spans = listen(model, inputs, at, Need("attention_row"))
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions[at - 1][0, :, -1]
    expected = ordered(weights[:, list(span.columns)] for span in spans)
    torch.testing.assert_close(ordered(f["attention_row"] for f in found), expected, atol=1e-5, rtol=0)


@cases("family, at", times(FAMILY, [0, 3]), by_anchor)
def test_the_row_ahead_is_what_the_next_layer_pays(family, tiny_models, at):
    """What PyramidDrop reads before layer k equals layer k's own weights."""
    model, inputs = tiny_models(family, "eager"), family.inputs(BATCHES["one"])
    found, spans = listen(model, inputs, at, Need("attention_row", "next"))
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions[at][0, :, -1]
    expected = ordered(weights[:, list(span.columns)] for span in spans)
    torch.testing.assert_close(ordered(f["attention_row"] for f in found), expected, atol=1e-5, rtol=0)


def test_text_attention_is_the_models_own(family, tiny_models):
    """Rows of the text after the image, over the image and over that text."""
    model, inputs = tiny_models(family, "eager"), family.inputs(BATCHES["one"])
    found, spans = listen(
        model, inputs, 2, Need("text_attention"), Need("text_self_attention"), Need("text_embeddings")
    )
    with torch.no_grad():
        out = model(**inputs, output_attentions=True, output_hidden_states=True)
    weights, embedded = out.attentions[1][0], out.hidden_states[0][0]
    length = inputs["input_ids"].shape[1]
    visual = {c for s in spans for c in (*s.columns, *(x.column for x in s.separators))}
    texts = [[c for c in range(s.columns[-1] + 1, length) if c not in visual] for s in spans]
    for span, text in zip(spans, texts, strict=True):
        own = weights[:, text]
        expected = own[:, :, list(span.columns)]
        of_span = [f for f in found if f["text_attention"].shape == expected.shape]
        assert any(torch.allclose(f["text_attention"], expected, atol=1e-5) for f in of_span)
        assert any(torch.allclose(f["text_self_attention"], own[:, :, text], atol=1e-5) for f in of_span)
        assert any(torch.allclose(f["text_embeddings"], embedded[text], atol=1e-5) for f in of_span)


def test_rows_of_a_padded_batch_are_read_alone(tiny_models):
    """Law 4 for the signals that have their own length in every row."""
    family = FAMILIES["llava"]
    model = tiny_models(family)
    rows = [[3, Picture(4, 6), 9], [6, Picture(4, 6), 2, Picture(4, 6), 4]]
    needs = [Need("text_attention"), Need("text_self_attention"), Need("text_hidden", "normed"), Need("text_keys")]
    inputs = family.inputs(rows)
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)  # as generate() counts them
    together, _ = listen(model, inputs | {"position_ids": positions}, 2, *needs)
    alone = [f for i, row in enumerate(rows) for f in listen(model, family.inputs([row], first=i), 2, *needs)[0]]
    assert len(together) == len(alone) == 3
    for one in alone:
        same = [f for f in together if all(f[n].shape == one[n].shape for n in one)]
        assert any(all(torch.allclose(f[n], one[n], atol=1e-5) for n in one) for f in same)


def test_keys_and_hidden_states(tiny_models):
    family = FAMILIES["qwen2_vl"]
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    found, (span,) = listen(
        model, inputs, 2, Need("keys"), Need("hidden"), Need("features"), Need("text_keys"), Need("text_hidden")
    )
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True, use_cache=True)
    columns, after = list(span.columns), range(span.columns[-1] + 1, inputs["input_ids"].shape[1])
    keys = out.past_key_values.layers[1].keys[0]
    torch.testing.assert_close(found[0]["keys"], keys[:, columns])
    torch.testing.assert_close(found[0]["text_keys"], keys[:, list(after)])
    torch.testing.assert_close(found[0]["hidden"], out.hidden_states[2][0, columns])
    torch.testing.assert_close(found[0]["text_hidden"], out.hidden_states[2][0, list(after)])
    torch.testing.assert_close(found[0]["features"], out.hidden_states[0][0, columns])


def test_products_without_rotation(tiny_models):
    """FEATHER: queries and keys of layer k-1 as its projections give them, softmax over the image alone."""
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    found, (span,) = listen(model, inputs, 2, Need("attention_row", "content"))
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states[1]
        layer = family.text_model(model).layers[1]
        x, attention = layer.input_layernorm(hidden)[0], layer.self_attn
        q = attention.q_proj(x[-1]).view(4, -1)
        k = attention.k_proj(x[list(span.columns)]).view(span.count, 2, -1).repeat_interleave(2, dim=1)
    expected = (torch.einsum("he,nhe->hn", q, k) * attention.scaling).softmax(-1)
    torch.testing.assert_close(found[0]["attention_row"], expected, atol=1e-5, rtol=0)


def test_what_the_encoder_computed(tiny_models):
    """Features and keys of the layer that becomes the features, the first and last layers' attention, pixels."""
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family, "eager"), family.inputs(BATCHES["one"])
    tower = model.base_model.vision_tower
    needs = [Need("vision_features"), Need("vision_keys"), Need("saliency", "cls"), Need("entropy")]
    needs.append(Need("saliency_early", "received", depth=0.9))  # block 2 of 3
    found, _ = listen(model, inputs, 0, *needs, Need("saliency_first", "cls"))
    with torch.no_grad():
        out = tower(inputs["pixel_values"], output_hidden_states=True, output_attentions=True)
        layers = [m for n, m in tower.named_modules() if n.endswith("layers.1")]
        keys = layers[0].self_attn.k_proj(layers[0].layer_norm1(out.hidden_states[1]))[0].view(37, 2, -1).mean(1)
    torch.testing.assert_close(found[0]["vision_features"], out.hidden_states[-2][0, 1:])
    torch.testing.assert_close(found[0]["vision_keys"], keys[1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0]["saliency"], out.attentions[1][0, :, 0, 1:].mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0]["saliency_early"], out.attentions[2][0].mean((0, 1))[1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0]["saliency_first"], out.attentions[0][0, :, 0, 1:].mean(0), atol=1e-5, rtol=0)
    patch = inputs["pixel_values"][0, :, 4:8, 8:12].reshape(1, 1, 3, 16)
    torch.testing.assert_close(found[0]["entropy"][1 * 6 + 2], grey_entropy(patch)[0, 0])
    joint, _ = listen(model, inputs, 0, Need("saliency", "joint"))
    with torch.no_grad():
        last = next(m for n, m in tower.named_modules() if n.endswith("layers.2"))
        x = last.layer_norm1(out.hidden_states[2])[0]
        scores = last.self_attn.q_proj(x[0]) @ last.self_attn.k_proj(x).T / 32**0.5
    torch.testing.assert_close(joint[0]["saliency"], scores.softmax(-1)[1:], atol=1e-5, rtol=0)
    received = out.attentions[1][0].mean(0)
    times = round(float(received.mean(0).median() / received.mean()), 6)
    wide, _ = listen(model, inputs, 0, Need("saliency", "global", times))
    focus = received.mean(0) > times * received.mean()
    assert 10 < focus.sum() < 27
    torch.testing.assert_close(wide[0]["saliency"], received[focus].mean(0)[1:], atol=1e-5, rtol=0)


def test_a_stage_does_not_read_an_earlier_ones_row(tiny_models, monkeypatch):
    """Where the tap of a later stage stays silent, the signal is missing instead of stale."""
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs(BATCHES["one"])
    listener = engine.listener
    silent = lambda *arguments: None  # noqa: E731
    monkeypatch.setattr(engine, "listener", lambda forward, i, *rest: listener(forward, i, *rest) if i == 0 else silent)
    with prune(model, [Stage(1, FastV(keep=0.5)), Stage(3, FastV(keep=1.0))]), pytest.raises(MissingSignal):
        model(**inputs)


def test_signals_that_the_user_brings(tiny_models):
    """CDPruner with CLIP: tensors for each image and each row; wrong ones say what was expected."""
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family), family.inputs(BATCHES["padded"])
    made = torch.Generator().manual_seed(0)
    image, text = [torch.randn(36, 5, generator=made) for _ in range(3)], [torch.randn(m, 5) for m in (1, 3)]
    with torch.no_grad(), prune(model, "cdpruner", keep=9, relevance="clip") as run:
        with pytest.raises(MissingSignal, match="'clip_image'"):
            model(**inputs)
        run.give(clip_image=image, clip_text=text)
        model(**inputs)
        features = inputs["pixel_values"]
        tokens = model.base_model.get_image_features(pixel_values=features).pooler_output
        spans = run.spans
        for number, span in enumerate(spans):
            signals = {"features": tokens[number], "clip_image": image[number], "clip_text": text[span.row]}
            alone = select("cdpruner", keep=9, relevance="clip", **signals).index
            assert set((alone + span.columns[0]).tolist()) <= set(run.kept[0][span.row].tolist())
        run.give(clip_image=[x[:, :4] for x in image])
        with pytest.raises(BadInput, match=r"clip_image \[36, 4\] and clip_text \[1, 5\] disagree on p"):
            model(**inputs)
        run.give(clip_image=[image[0], image[1][None], image[2]])
        with pytest.raises(BadInput, match=r"clip_image \[1, 36, 5\] does not fit: expected \[n, p\]"):
            model(**inputs)
        with pytest.raises(BadInput, match="clip_text holds NaN"):
            run.give(clip_text=[x / 0 for x in text])
        run.give(clip_image=image[:2])
        with pytest.raises(BadInput, match="2 tensors were given for clip_image, but the prompt has 3 images"):
            model(**inputs)
        run.give(clip_image=[x[:9] for x in image])
        with pytest.raises(BadInput, match="clip_image was given 9 tokens for an image or video of 36"):
            model(**inputs)
        with pytest.raises(BadInput, match="Unknown signal to give 'features'"):
            run.give(features=image)


def test_a_block_at_a_depth_sees_whole_pictures():
    """Qwen2.5-VL's blocks of windows are passed over."""
    family = FAMILIES["qwen2_5_vl"]
    model, inputs = family.build("eager"), family.inputs([[1, Picture(4, 6), 2]])
    near, _ = listen(model, inputs, 0, Need("saliency_early", "received", depth=0.0))
    chosen, _ = listen(model, inputs, 0, Need("saliency", "received"))
    assert torch.equal(near[0]["saliency_early"], chosen[0]["saliency"])  # one block of full attention


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "exaone4_5"])
def test_pixels_are_those_of_their_token(name):
    """Of a flat picture, larger than a window, with one group of noise: its token has the entropy."""
    family = FAMILIES[name]
    model, inputs = family.build(), family.inputs([[1, Picture(4, 6), 2]])
    noise = torch.randn(4, inputs["pixel_values"].shape[1])
    for group in (0, 5, 13, 23):
        inputs["pixel_values"].fill_(0.1)
        inputs["pixel_values"][4 * group : 4 * group + 4] = noise
        found, _ = listen(model, inputs, 0, Need("entropy"))
        assert int(found[0]["entropy"].argmax()) == group
        assert (found[0]["entropy"] > 0).sum() == 1
