"""AdaptInfer's offline search for the layers to prune at."""

from __future__ import annotations

import pytest
import torch

from tests.laws import BATCHES
from tests.tiny import FAMILIES
from tokenprune import BadInput, search_layers
from tokenprune.methods.adaptinfer import change_points


def test_change_points_of_known_curves():
    slopes = torch.tensor([3.0] * 5 + [1.0] * 7 + [0.2] * 6 + [2.0] * 4)
    assert change_points(slopes.cumsum(0)) == [4, 11, 17]
    assert change_points(slopes[:12].cumsum(0), count=1) == [4]
    noisy = slopes.cumsum(0) + 0.05 * torch.randn(22, generator=torch.Generator().manual_seed(0))
    assert all(abs(a - b) <= 1 for a, b in zip(change_points(noisy), [4, 11, 17], strict=True))
    with pytest.raises(BadInput, match="3 change points need a curve of at least 8 layers; this one has 5"):
        change_points(slopes[:5])


def test_search_reads_the_models_own_attention(tiny_models):
    family = FAMILIES["llava"]
    model, inputs = tiny_models(family, "eager"), family.inputs(BATCHES["one"])
    with torch.no_grad():
        expected = model(**inputs).logits
        weights = model(**inputs, output_attentions=True).attentions
    found = search_layers(model, [inputs, inputs], count=1)
    visual = inputs["input_ids"][0] == 90
    last = int(visual.nonzero().max())
    share = [float(w[0, :, last + 1 :, visual].sum(-1).mean()) for w in weights[:-1]]
    torch.testing.assert_close(torch.tensor(found.share), torch.tensor(share), atol=1e-5, rtol=0)
    assert len(found.layers) == 1
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)
    with pytest.raises(BadInput, match="at least one prompt"):
        search_layers(model, [])
