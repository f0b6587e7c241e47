"""Finds the layers to prune at for a model that no paper has tuned (AdaptInfer's offline search)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenprune.api import prune
from tokenprune.core.selection import Selection
from tokenprune.engine.run import language_layers
from tokenprune.errors import BadInput
from tokenprune.methods.adaptinfer import change_points
from tokenprune.methods.base import Method, View
from tokenprune.methods.stage import Stage
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class _Listen(Method):
    """Keeps everything and notes what the text pays to the image."""

    name: ClassVar[str] = "listen"
    paper: ClassVar[str] = "arXiv 2508.06084"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "measurement"

    heard: list[Tensor] = field(default_factory=list)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("text_attention"),)

    def select(self, view: View) -> Selection:
        self.heard.extend(view["text_attention"].float().sum(-1).mean((1, 2)).cpu())
        return Selection(torch.arange(view.count, device=view.device).expand(view.spans, -1))


@dataclass(frozen=True)
class Layers:
    """layers: the decoder layers after which attention to the image changes its pace; a stage stands before the next
    one. share: for each layer but the last the mean share of its text's attention that images get."""

    layers: list[int]
    share: list[float]


@torch.no_grad()
def search_layers(model: PreTrainedModel, prompts: Iterable[dict[str, Any]], count: int = 3) -> Layers:
    """Where the cumulative attention of the text to the image bends, over a set of prompts (AdaptInfer).

    prompts: inputs of the model with images, one dictionary for each batch; the paper takes about 1,000 samples.
    count: how many layers to find. The model is run as it is; nothing is pruned.
    """
    listeners = [_Listen(keep=1.0) for _ in range(len(language_layers(model)) - 1)]
    with prune(model, [Stage(at, one) for at, one in enumerate(listeners, 1)]):
        for inputs in prompts:
            model(**inputs)
    if not listeners or not listeners[0].heard:
        raise BadInput("search_layers needs at least one prompt with an image.")
    share = torch.stack([torch.stack(one.heard).mean() for one in listeners])
    return Layers(change_points(share.cumsum(0), count), share.tolist())
