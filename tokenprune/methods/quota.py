"""QuoTA: frames get tokens by how much they matter to the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tokenprune.core.budget import Keep
from tokenprune.core.diversity import unit_rows
from tokenprune.core.frames import frame_means
from tokenprune.core.merging import Survivors, stack_spans
from tokenprune.core.selection import Selection
from tokenprune.errors import BadInput
from tokenprune.methods.base import BudgetMethod, View, fill_option, keep_option, option
from tokenprune.methods.origin import RENUMBERED, Difference, Origin
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class QuoTA(BudgetMethod):
    """QuoTA (Luo et al., 2025, arXiv 2503.08689), as an allocator over any score of frames.

    A frame's weight is its score to the power `power`, over the sum; it gets int(k * weight) tokens, and its map is
    resized to the square that these allow, one row taller where they allow that (`resize`: bilinear, as published by
    default, or means of cells, the second version, where weights above what a frame has spread over the others first).
    A frame without tokens is dropped. The paper's score is the probability that a second model says the frame shows
    what the question is about: bring it with `run.give(frame_scores=...)`. `score="text"` takes the cosine of a frame's
    mean token with the mean embedding of the question, at least 0; it is ours.

    `fill="none"` gives the published output; by default what the maps leave unspent goes to the tokens of the best
    frames that differ most from their map. The published code resizes the encoder's map of 27 x 27, larger than it is
    where a frame's share is; here it is the map that the model makes of it, and it does not grow. Needs whole frames:
    make it the first stage.
    """

    name: ClassVar[str] = "quota"
    paper: ClassVar[str] = "arXiv 2503.08689"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "video, text-guided, merging"
    reads_grid: ClassVar[bool] = True
    origin: ClassVar[Origin] = Origin("code", "MAC-AutoML/QuoTA", "ec194d7c")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("what the maps leave unspent goes to other tokens", "the budget is kept exactly", {"fill": "none"}),
        Difference("scores of frames are brought", "the code asks a second model for them"),
        Difference(
            "a map does not grow beyond what the model makes of a frame",
            "the code resizes the encoder's map, which is larger",
        ),
        RENUMBERED,
    )

    keep: Keep = keep_option(0.25)
    score: str = option("given", "what frames are weighed by: given or text", ("given", "text"))
    power: float = option(2.0, "exponent of the score", low=0.0)
    resize: str = option("bilinear", "how a frame is made smaller: bilinear or mean", ("bilinear", "mean"))
    fill: str = fill_option("difference", "what the remainder goes to")

    @property
    def needs(self) -> tuple[Need, ...]:
        own = "frame_scores" if self.score == "given" else "text_embeddings"
        return (Need("features"), Need(own))

    def choose(self, view: View) -> Selection:
        k, frames = self.budget(view), view.frames(self.name)
        if view.count != sum(t * h * w for t, h, w in view.grids):
            raise BadInput(f"quota resizes whole frames, but {view.count} tokens are left. Make it the first stage.")
        x = frames.spread(view["features"])
        scores = self._scores(view, frame_means(x, frames.present))
        shapes = [(h, w) for t, h, w in view.grids for _ in range(t)]
        return stack_spans([frames.tokens(i, *self._span(x[i], scores[i], shapes, k)) for i in range(view.spans)])

    def _scores(self, view: View, means: Tensor) -> Tensor:
        if self.score == "text":
            text = unit_rows(view["text_embeddings"].mean(1))
            return (unit_rows(means) @ text[..., None]).squeeze(-1).clamp(min=0)
        given = view["frame_scores"].double()
        if given.shape[1] != means.shape[1] or bool((given < 0).any()):
            raise BadInput(f"frame_scores must be one number >= 0 for each of {means.shape[1]} frames.")
        return given

    def _span(self, x: Tensor, scores: Tensor, shapes: list[tuple[int, int]], k: int) -> tuple[Tensor, Tensor]:
        frames, size, _ = x.shape
        weight = scores**self.power
        weight = weight / weight.sum() if bool(weight.sum() > 0) else torch.full_like(weight, 1 / frames)
        shares = weight.tolist()
        if self.resize == "mean":
            shares = cap(shares, size / k)
        stays = Survivors(frames * size, x.device)
        far = torch.full((frames, size), float("-inf"), dtype=torch.float64, device=x.device)
        unit = unit_rows(x)
        for frame, share in enumerate(shares):
            h, w = shapes[frame]
            rows, columns = squarest(int(share * k + 1e-9), h, w)
            own = torch.arange(h * w, device=x.device)
            far[frame, : h * w] = scores[frame]
            if rows * columns:
                mixed = self._resize(h, w, rows, columns).to(x.device)
                centre = (torch.arange(rows) * 2 + 1) * h // (2 * rows) * w
                picked = (centre[:, None] + (torch.arange(columns) * 2 + 1) * w // (2 * columns)).flatten()
                weights = torch.zeros(len(picked), stays.count, device=x.device)
                weights[:, frame * size + own] = mixed
                stays.mix(frame * size + picked.to(x.device), weights)
                small = unit_rows(mixed.to(x) @ x[frame, : h * w])
                far[frame, : h * w] += 1 - (unit[frame, : h * w] @ small.mT).amax(-1)
        return stays.all() if self.fill == "none" else stays.exactly(k, far.flatten())

    def _resize(self, h: int, w: int, rows: int, columns: int) -> Tensor:
        """Weights [rows * columns, h * w] of a map made smaller."""
        every = torch.eye(h * w).view(h * w, 1, h, w)
        if self.resize == "mean":
            small = torch.nn.functional.adaptive_avg_pool2d(every, (rows, columns))
        else:
            small = interpolate(every, size=(rows, columns), mode="bilinear", align_corners=False)
        return small.flatten(1).mT


def squarest(tokens: int, h: int, w: int) -> tuple[int, int]:
    """Rows and columns of a map of at most `tokens` within h x w: the largest square, a row taller if that fits, else
    a column wider."""
    side = min(int(tokens**0.5), h, w)
    for rows, columns in ((side + 1, side), (side, side + 1)):
        if side and rows * columns <= tokens and rows <= h and columns <= w:
            return rows, columns
    return side, side


def cap(weights: list[float], most: float) -> list[float]:
    """Weights of at most `most`; what is above spreads over the others once, in proportion, from first to last."""
    above = sum(max(weight - most, 0.0) for weight in weights)
    weights = [min(weight, most) for weight in weights]
    total = sum(weights)
    for i, weight in enumerate(weights):
        if above and weight < most:
            wanted = weight + weight / total * above
            above += max(wanted - most, 0.0)
            weights[i] = min(wanted, most)
    return weights
