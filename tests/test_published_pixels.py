"""Methods before the vision encoder against their rules, group by group."""

from __future__ import annotations

import pytest
import torch

from tests.encoder_oracle import hidden_rows, towers_of
from tests.oracle import oracle_logits
from tests.tiny import FAMILIES, Picture
from tokenprune import prune
from tokenprune.methods.base import View
from tokenprune.methods.mustdrop import MustDrop
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


def plain_mustdrop(x, window, merges):
    """{token that stays: the tokens it is the mean of}, windows in the order of how alike they are while `merges`."""
    h, w, _ = x.shape
    unit = x / x.norm(dim=-1, keepdim=True)
    found = {r * w + c: [r * w + c] for r in range(h) for c in range(w)}
    windows = []
    for r in range(0, h - window + 1, window):
        for c in range(0, w - window + 1, window):
            own = [(r + i, c + j) for i in range(window) for j in range(window)]
            pairs = [float(unit[a] @ unit[b]) for a in own for b in own if a != b]
            windows.append((sum(pairs) / len(pairs), [i * w + j for i, j in own]))
    for alike, own in sorted(windows, key=lambda one: -one[0]):
        count = min(merges(alike, len(found)), len(own))
        if count > 1:
            found[own[0]] = own[:count]
            for token in own[1:count]:
                del found[token]
    return found


@pytest.mark.parametrize(("h", "w", "window"), [(6, 9, 3), (7, 8, 3), (4, 6, 2), (2, 2, 3)])
@pytest.mark.parametrize("keep", [None, 0.9, 0.6])
def test_mustdrop_follows_its_rule(h, w, window, keep):
    made = torch.Generator().manual_seed(h)
    x = torch.randn(2, h, w, 5, generator=made, dtype=torch.float64) + 2 * torch.randn(2, 1, 1, 5, generator=made)
    method = MustDrop(keep=keep, window=window, threshold=0.7)
    view = View(h * w, 2, ((1, h, w),), {"vision_states": x.flatten(1, 2)}, total=h * w)
    found = method.select(view)
    for span in range(2):
        k = None if keep is None else round(keep * h * w)
        merges = lambda alike, left, k=k: 99 * (alike >= 0.7) if k is None else left - k + 1  # noqa: E731
        expected = plain_mustdrop(x[span], window, merges)
        if k is not None and len(expected) > k:  # windows cannot give so much
            assert len(found.span(span)[0]) == k
            continue
        index, weights = found.span(span)
        assert index.tolist() == sorted(expected)
        mixed = torch.stack([x[span].flatten(0, 1)[expected[i]].mean(0) for i in sorted(expected)])
        torch.testing.assert_close(weights.double() @ x[span].flatten(0, 1), mixed, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["llava", "llava-siglip"])
@pytest.mark.parametrize("keep", [30, 22, 14])
def test_the_encoder_goes_on_with_the_means(name, keep):
    """Against the encoder on all rows, in which means stand for windows and nobody sees what went into them."""
    family, model = FAMILIES[name], FAMILIES[name].build("eager")
    inputs = family.inputs([[1, Picture(6, 6), 2]])
    found = {}

    def mix(module, args, kwargs):
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        cls = hidden.shape[1] - 36
        found.update(plain_mustdrop(hidden[0, cls:].double().view(6, 6, -1), 2, lambda _, left: left - keep + 1))
        means = {i: hidden[0, [cls + j for j in own]].mean(0) for i, own in found.items()}
        for i, mean in means.items():
            hidden[0, cls + i] = mean
        gone[0, [cls + i for i in range(36) if i not in found]] = True
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    blocks = towers_of(model)[0]
    columns = torch.isin(inputs["input_ids"][0], torch.tensor(family.placeholder)).nonzero().flatten()
    with torch.no_grad():
        with prune(model, MustDrop(keep=keep, window=2)) as run:
            pruned = model(**inputs).logits
            shown = run.columns(0)[0]
        gone = torch.zeros(1, 37 if name == "llava" else 36, dtype=torch.bool)
        handle = blocks[1].register_forward_pre_hook(mix, with_kwargs=True)
        model(**inputs)  # which rows go follows from the states before block 1
        with hidden_rows(model, gone, 1):
            expected = oracle_logits(family, model, inputs, {0: [columns[sorted(found)]]})
        handle.remove()
    assert torch.isin(columns, shown).nonzero().flatten().tolist() == sorted(found)
    torch.testing.assert_close(pruned[0, shown], expected[0, shown], atol=1e-4, rtol=0)
