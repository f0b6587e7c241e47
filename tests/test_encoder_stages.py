"""Pruning before and inside the vision encoder: against the encoder on all rows with those that went hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from tests.encoder_oracle import hidden_rows, rows_of_columns
from tests.oracle import oracle_logits
from tests.tiny import FAMILIES, Picture, Video
from tokenprune import Stage, prune
from tokenprune.core.selection import Selection
from tokenprune.methods.base import Method, View
from tokenprune.methods.place import Pixels, Vision
from tokenprune.methods.uniform import Uniform

WHOLE = ("vipllava", "fast_vlm", "perception_lm")
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


def rows_gone(name, model, inputs, left):
    """bool [sequences, rows] of the encoder that no longer count, once only the prompt columns `left` do."""
    family = FAMILIES[name]
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
            kept, columns = run.kept[0], run.columns(0)
        left = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        for row, own in enumerate(kept):
            left[row, own] = True
        gone = rows_gone(name, model, inputs, left)
        assert gone.any()
        shown = [own[own >= 0] for own in columns]
        visual = torch.isin(inputs["input_ids"], torch.tensor(family.placeholder))
        alive = [own[visual[row, own]] for row, own in enumerate(shown)]
        with hidden_rows(model, gone, place.block):
            expected = oracle_logits(family, model, inputs, {0: alive}, compact=positions == "compact")
    for row, own in enumerate(shown):
        torch.testing.assert_close(pruned[row, own], expected[row, own], atol=1e-4, rtol=0)
