"""Methods before the vision encoder against their rules, group by group."""

from __future__ import annotations

import pytest
import torch

from tokenprune.methods.base import View
from tokenprune.methods.pixelprune import PixelPrune
from tokenprune.methods.rlt import RLT


def plain_pixelprune(x, tau, anchored):
    """The rule, group by group: what stands for each group."""
    h, w, _ = x.shape
    ref = {}

    def like(a, b):
        return float((x[a] - x[b]).abs().max()) <= tau

    for r in range(h):
        for c in range(w):
            own = (r, c)
            look = (lambda cell: ref[cell]) if anchored else (lambda cell: cell)
            if own == (0, 0):
                ref[own] = own
                continue
            if r == 0:
                by = look((r, c - 1))
            elif c == 0:
                by = look((r - 1, c))
            else:
                a, b, d = look((r, c - 1)), look((r - 1, c)), look((r - 1, c - 1))
                by = b if like(d, a) and not like(d, b) else a
            ref[own] = by if like(own, by) else own
    return ref


@pytest.mark.parametrize(("tau", "anchored"), [(0.0, True), (0.0, False), (0.15, True), (0.15, False)])
def test_pixelprune_follows_its_rule(tau, anchored):
    made = torch.Generator().manual_seed(3)
    for h, w in ((1, 1), (1, 7), (6, 1), (5, 8), (9, 4)):
        x = torch.randint(0, 3, (2, h, w, 6), generator=made) / 2
        x = (x * (torch.rand(2, h, w, 1, generator=made) < 0.5)).float()
        x += 0.05 * torch.randint(0, 3, x.shape, generator=made) * (tau > 0)
        found = PixelPrune(tau=tau, anchored=anchored).select(
            View(h * w, 2, ((1, h, w),), {"pixels": x.flatten(1, 2)}, total=h * w)
        )
        for span in range(2):
            ref = plain_pixelprune(x[span], tau, anchored)
            stays = [r * w + c for (r, c), by in ref.items() if by == (r, c)]
            assert found.span(span)[0].tolist() == stays
            if anchored:
                by = [ref[r, c] for r in range(h) for c in range(w)]
                assert found.anchors[span].tolist() == [r * w + c for r, c in by]


def test_pixelprune_keeps_one_group_of_a_flat_picture_and_never_strays():
    flat = torch.full((1, 24, 6), 0.3)
    found = PixelPrune().select(View(24, 1, ((1, 4, 6),), {"pixels": flat}, total=24))
    assert found.index.tolist() == [[0]]
    ramp = torch.linspace(0, 1, 24)[None, :, None].expand(1, 24, 6)
    found = PixelPrune(tau=0.1).select(View(24, 1, ((1, 4, 6),), {"pixels": ramp}, total=24))
    assert ((ramp[0] - ramp[0, found.anchors[0]]).abs() <= 0.1 + 1e-6).all()
    exact = PixelPrune(keep=7).select(View(24, 1, ((1, 4, 6),), {"pixels": ramp}, total=24))
    assert exact.index.shape == (1, 7)
    assert torch.isin(exact.anchors, exact.index).all()


@pytest.mark.parametrize("keep", [None, 0.5])
def test_rlt_follows_its_rule(keep):
    made = torch.Generator().manual_seed(1)
    x = torch.rand(2, 5, 6, 4, generator=made).cumsum(1) * 0.05
    found = RLT(keep=keep, tau=0.04).select(View(30, 2, ((5, 2, 3),), {"pixels": x.flatten(1, 2)}, total=30))
    for span in range(2):
        if keep is None:
            stays, last = set(range(6)), dict(enumerate(x[span, 0]))
            for t in range(1, 5):
                for place in range(6):
                    if float((x[span, t, place] - last[place]).abs().mean()) > 0.04:
                        stays.add(6 * t + place)
                        last[place] = x[span, t, place]
        else:
            change = {
                6 * t + p: float((x[span, t, p] - x[span, t - 1, p]).abs().mean())
                for t in range(1, 5)
                for p in range(6)
            }
            stays = {*range(6), *sorted(change, key=change.get, reverse=True)[:9]}
        assert found.span(span)[0].tolist() == sorted(stays)
        assert {*found.anchors[span].tolist()} <= stays
        assert all(anchor % 6 == token % 6 for token, anchor in enumerate(found.anchors[span].tolist()))
