"""AgilePruner: attention first, with a margin around what was chosen that grows with the picture's complexity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import cosine_distance
from tokenprune.core.selection import Selection, gather_rows, one_hot, order_of
from tokenprune.errors import BadInput
from tokenprune.methods.base import Method, Schedule, View, keep_option, option, options_of, source_option
from tokenprune.methods.origin import Difference, Origin
from tokenprune.methods.registry import method_class
from tokenprune.signals.need import Need


def effective_rank(x: Tensor) -> Tensor:
    """exp(entropy of the normalised singular values) of x [S, n, c]; [S] (Roy and Vetterli, 2007)."""
    x = x.double()
    gram = x @ x.mT if x.shape[1] < x.shape[2] else x.mT @ x
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    q = singular / singular.sum(-1, keepdim=True).clamp(min=1e-12)
    return torch.xlogy(q, q).sum(-1).neg().exp()


@dataclass(frozen=True)
class AgilePruner(Method):
    """AgilePruner (ICLR 2026, arXiv 2603.01236).

    Tokens are visited by falling encoder attention. A visited token is kept, and every candidate whose cosine distance
    to it is below tau leaves; tau = 0.01 i erank / erank_average, at most `tau_max`, for the i-th token kept. erank is
    the effective rank of the encoder features: simple pictures give small margins and follow attention, complex ones
    spread out. Where the candidates run out, the most attended of the others fill up.

    No code was published; the rule is that of the project's page. Our reading: i counts kept tokens from 1,
    `erank_average` is 106 (the paper's value for POPE; it gives 78 for OCR pictures), `tau_max` is 0.5, and the filling
    up. The paper's ratio for other methods that join attention and diversity is `agile_ratio`.
    """

    name: ClassVar[str] = "agilepruner"
    paper: ClassVar[str] = "arXiv 2603.01236"
    year: ClassVar[int] = 2026
    kind: ClassVar[str] = "attention, diversity"
    origin: ClassVar[Origin] = Origin(
        "paper", note="as its project page gives it; cvsp-lab/AgilePruner at 3df95a34 holds no code"
    )
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "candidates that run out are filled up by attention",
            "the budget is kept exactly; nothing is published on it",
        ),
    )

    keep: Keep = keep_option(0.111)
    erank_average: float = option(106.0, "effective rank of an average picture", low=1.0)
    tau_max: float = option(0.5, "largest margin, in cosine distance")
    source: str = source_option("cls")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("saliency", self.source), Need("vision_features"))

    def select(self, view: View) -> Selection:
        k, features = self.budget(view), view["vision_features"]
        step = 0.01 * effective_rank(features)[:, None] / self.erank_average
        attention = view["saliency"].float()
        order = order_of(attention)
        distance = cosine_distance(gather_rows(features, order))
        chosen = torch.zeros_like(order, dtype=torch.bool)
        free = torch.ones_like(chosen)
        for i in range(1, k + 1):
            candidates = torch.where(free.any(-1, keepdim=True), free, ~chosen)
            pick = candidates.long().argmax(-1, keepdim=True)
            chosen = chosen.scatter(1, pick, True)
            row = distance.gather(1, pick[..., None].expand(-1, 1, view.count)).squeeze(1)
            free &= (row >= (step * i).clamp(max=self.tau_max)) & ~chosen
        kept = order_of(chosen.long())[:, :k]
        return Selection(order.gather(1, kept).sort(dim=-1).values)


@dataclass(frozen=True)
class AgileRatio(Method):
    """AgilePruner's ratio for other methods that choose one part by attention and the other for diversity.

    The share of the budget that goes by attention falls with the effective rank of a picture's encoder features, on a
    line through (`eranks[0]`, `shares[0]`) and (`eranks[1]`, `shares[1]`), and is constant outside of them: simple
    pictures follow attention, complex ones spread out. `base` is any method that has the two parts (`vispruner`,
    `visionzip`, `efficientvla`), with its own defaults otherwise.

    The paper applies this to BAT, VisPruner and a mixture of FasterVLM and DivPrune, without code. Our reading: the
    line's ends, which are its mean effective ranks for OCR pictures and POPE, and shares around VisPruner's 0.5.
    """

    name: ClassVar[str] = "agile_ratio"
    paper: ClassVar[str] = "arXiv 2603.01236"
    year: ClassVar[int] = 2026
    kind: ClassVar[str] = "attention, diversity"
    origin: ClassVar[Origin] = Origin(
        "paper", note="as its project page gives it; cvsp-lab/AgilePruner at 3df95a34 holds no code"
    )
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "the ends of the line", "the page does not give them: its mean effective ranks, and shares around 0.5"
        ),
        Difference("BAT, and FasterVLM mixed with DivPrune, are no base", "neither is a method of this package"),
    )
    waits: ClassVar[str] = "how the budget is split follows from the effective rank of each picture"

    keep: Keep = keep_option(0.222)
    base: str = option("vispruner", "the method whose budget is split")
    shares: tuple[float, ...] = option(
        (0.75, 0.25), "share by attention of a simple and of a complex picture", low=0.0, high=1.0
    )
    eranks: tuple[float, ...] = option((78.0, 106.0), "effective rank of a simple and of a complex picture")
    source: str = source_option("cls")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("shares", "eranks"):
            if len(getattr(self, name)) != 2:
                raise BadInput(f"{name}={getattr(self, name)!r} of agile_ratio must be two numbers.")
        if not self.eranks[0] < self.eranks[1]:
            raise BadInput(f"eranks={self.eranks!r} of agile_ratio must rise: a simple picture, then a complex one.")
        method_class(self.base)().with_attention_share(0.5)

    def method(self, keep: Keep, share: float) -> Method:
        """The base method at one budget and one share."""
        base = method_class(self.base)
        chosen = {"source": self.source} if "source" in {f.name for f in options_of(base)} else {}
        return base(keep=keep, **chosen).with_attention_share(share)

    @property
    def needs(self) -> tuple[Need, ...]:
        own = self.method(self.keep, 0.5).needs
        features = Need("vision_features")
        return own if features in own else (*own, features)

    @property
    def merges_in(self) -> str:
        return self.method(self.keep, 0.5).merges_in

    def schedule(self, layers: int) -> Schedule:
        return [(method_class(self.base).default_at, self)]

    def select(self, view: View) -> Selection:
        (low, high), (simple, complex_) = self.eranks, self.shares
        part = ((effective_rank(view["vision_features"]) - low) / (high - low)).clamp(0, 1)
        k, found = self.budget(view), []
        for i, share in enumerate((simple * (1 - part) + complex_ * part).tolist()):
            own = {name: signal[i : i + 1] for name, signal in view.signals.items()}
            tokens = None if view.tokens is None else view.tokens[i : i + 1]
            found.append(self.method(k, share).select(replace(view, spans=1, signals=own, tokens=tokens)))
        weights = None
        if any(one.weights is not None for one in found):
            given = (one_hot(one.index, view.count) if one.weights is None else one.weights for one in found)
            weights = torch.cat(list(given))
        return Selection(torch.cat([one.index for one in found]), weights)
