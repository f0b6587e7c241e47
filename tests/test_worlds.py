"""What all worlds share: batches by several workers, settings, remembered encoders, errors of shares."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import typer
from torch import nn

from eval.worlds import batches
from eval.worlds.base import Settings
from eval.worlds.batches import Batches
from eval.worlds.clips.world import CLIPS
from eval.worlds.errors import error, share
from eval.worlds.remember import remembered
from eval.worlds.train import change, join


def test_workers_take_batches_in_turns(monkeypatch):
    """As a loader has them; real processes would be forks of one that has threads."""
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    own = Batches(CLIPS, CLIPS.make_tokenizer(), "train", 1, start=3)
    workers = []
    for number in range(2):
        monkeypatch.setattr(batches, "get_worker_info", lambda number=number: SimpleNamespace(id=number, num_workers=2))
        workers.append(iter(own))
        workers[-1] = [next(workers[-1]) for _ in range(2)]
    monkeypatch.setattr(batches, "get_worker_info", lambda: None)
    alone = iter(own)
    for found in (workers[0][0], workers[1][0], workers[0][1], workers[1][1]):
        expected = next(alone)
        assert found.shared == expected.shared
        assert torch.equal(found.pixels, expected.pixels)
        assert torch.equal(found.packs[0].ids, expected.packs[0].ids)


def test_settings_are_changed_by_name():
    settings = Settings(tower_batch=4, decoder_batch=4, tower_steps=1, decoder_steps=1, align_until=0.5)
    found = change(settings, ["decoder_steps=600", "muon_lr=3e-3"])
    assert (found.decoder_steps, found.muon_lr, found.tower_steps) == (600, 0.003, 1)
    with pytest.raises(typer.BadParameter, match="no setting 'steps'"):
        change(settings, ["steps=3"])
    with pytest.raises(typer.BadParameter, match="decoder_steps takes a number"):
        change(settings, ["decoder_steps=many"])


def test_an_encoder_is_asked_once_for_equal_inputs():
    calls = []

    class Twice(nn.Module):
        def forward(self, x, grid=None):
            calls.append(1)
            return [2 * x]

    module, kept, x = Twice(), {}, torch.ones(2)
    with remembered(module, kept):
        first = module(x, grid=torch.tensor([1]))
        first.append("changed by the caller")
        assert torch.equal(module(x.clone(), grid=torch.tensor([1]))[0], 2 * x)
        assert len(module(x, grid=torch.tensor([1]))) == 1
        assert len(calls) == 1
        module(x, grid=torch.tensor([2]))
        module(x + 1, grid=torch.tensor([1]))
        module(x[:1], grid=torch.tensor([1]))
        assert len(calls) == 4
    module(x, grid=torch.tensor([1]))
    assert len(calls) == 5


def test_rows_between_steps():
    steps, gap = torch.arange(12.0).view(1, 3, 2, 2), torch.full((1, 1, 2), -1.0)
    assert join(steps, gap)[0, :, 0].tolist() == [0, 2, -1, 4, 6, -1, 8, 10]
    assert torch.equal(join(steps, gap[:, :0]), steps.flatten(1, 2))


def test_a_share_has_its_standard_error():
    """Against drawing: the spread of means of two types with 50 answers each."""
    drawn = torch.manual_seed(0) and torch.bernoulli(torch.tensor([0.2, 0.7]).expand(20000, 50, 2))
    assert error([0.2, 0.7], 50) == pytest.approx(drawn.mean((1, 2)).std().item(), rel=0.03)
    assert share([0.5, 1.0], 100) == "75.0 ± 2.5"
