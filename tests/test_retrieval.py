"""Merged page embeddings of ColPali and ColQwen2."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    ColPaliConfig,
    ColPaliForRetrieval,
    ColQwen2Config,
    ColQwen2ForRetrieval,
)

from tests.tiny import FAMILIES, Picture
from tokenprune import BadInput, merge_pages


def colpali():
    torch.manual_seed(0)
    config = ColPaliConfig(vlm_config=FAMILIES["paligemma"].config(), embedding_dim=16)
    return ColPaliForRetrieval(config).eval(), FAMILIES["paligemma"]


def colqwen2():
    torch.manual_seed(0)
    config = ColQwen2Config(vlm_config=FAMILIES["qwen2_vl"].config(), embedding_dim=16)
    return ColQwen2ForRetrieval(config).eval(), FAMILIES["qwen2_vl"]


@pytest.mark.parametrize("build", [colpali, colqwen2])
@pytest.mark.parametrize("keep", [1 / 9, 0.5, 3, 1.0])
def test_pages_of_real_retrievers(build, keep):
    model, family = build()
    rows = [[3, Picture(4, 6), 5], [2, Picture(4, 4), 4]]
    inputs = family.inputs(rows)
    if build is colqwen2:  # its processor pads the patches of every page to the longest
        patches = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(-1).tolist())
        inputs["pixel_values"] = torch.nn.utils.rnn.pad_sequence(patches, batch_first=True)
    with torch.no_grad():
        found = model(**inputs).embeddings
    image = inputs["input_ids"] == family.placeholder[0]
    merged, valid = merge_pages(found, image, inputs["attention_mask"], keep=keep)
    for i, row in enumerate(image):
        n = int(row.sum())
        k = keep if isinstance(keep, int) else -int(-n * keep // 1)
        others = int(inputs["attention_mask"][i].sum()) - n
        assert int(valid[i].sum()) == k + others
        torch.testing.assert_close(merged[i][valid[i]].norm(dim=-1), torch.ones(k + others))
        assert not merged[i][~valid[i]].any()
        if keep == 1.0:
            torch.testing.assert_close(merged[i][:n], found[i][row])
        torch.testing.assert_close(
            merged[i][k : k + others], found[i][inputs["attention_mask"][i].bool() & ~row], atol=1e-6, rtol=0
        )


def test_groups_become_their_means():
    """Four clear groups at any order: each merged vector is the direction of its group, and the search still works."""
    made = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(4, 16, generator=made), dim=-1)
    label = torch.arange(40) % 4
    page = torch.nn.functional.normalize(centres[label] + 0.02 * torch.randn(40, 16, generator=made), dim=-1)
    merged, valid = merge_pages(page[None], torch.ones(1, 40, dtype=torch.bool), keep=4)
    assert valid.all()
    assert (merged[0] @ centres.T).argmax(-1).tolist() == [0, 1, 2, 3]
    question = centres[:2]
    full, light = ((question @ vectors.T).amax(-1).sum() for vectors in (page, merged[0]))
    assert abs(full - light) < 0.05


def test_wrong_pages():
    page = torch.randn(1, 6, 4)
    with pytest.raises(BadInput, match=r"embeddings \[1, 6, 4\] and image \[1, 5\] do not fit"):
        merge_pages(page, torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(BadInput, match="no patch vectors"):
        merge_pages(page, torch.zeros(1, 6, dtype=torch.bool))
    with pytest.raises(BadInput, match="keep=9 is more than the 6"):
        merge_pages(page, torch.ones(1, 6, dtype=torch.bool), keep=9)
