"""Collects the saliency signal while the vision encoder runs, and matches it to the spans of the next prompt."""

from __future__ import annotations

import inspect
import threading
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenprune.attach import taps
from tokenprune.errors import MissingSignal
from tokenprune.families.base import Family, Span


class SaliencyReader:
    """Hooks on the vision encoder; per thread, the saliency of every image since the last prompt."""

    def __init__(self, model: PreTrainedModel, family: Family, variants: list[str]) -> None:
        self.model, self.family, self.variants = model, family, variants
        self.tower = family.tower(model)
        self.module = family.saliency_module(model)
        self._local = threading.local()

    def hooks(self) -> list[Any]:
        """Register the hooks; the caller removes the handles."""
        return [
            self.tower.register_forward_pre_hook(self._start, with_kwargs=True),
            self.tower.register_forward_hook(self._end, always_call=True),
        ]

    def _start(self, tower: nn.Module, args: tuple, kwargs: dict) -> None:
        self._local.calls = {v: [] for v in self.variants}
        self._local.inputs = inspect.signature(tower.forward).bind_partial(*args, **kwargs).arguments
        taps.listeners()[self.module] = self._listen

    def _listen(self, query: Tensor, key: Tensor, scaling: float) -> None:
        for variant, calls in self._local.calls.items():
            read = taps.first_row_attention if variant == "cls" else taps.received_attention
            calls.append(read(query, key, scaling))

    def _end(self, tower: nn.Module, args: tuple, output: Any) -> None:
        taps.listeners().pop(self.module, None)
        images = self._images()
        for variant, calls in self._local.calls.items():
            if calls:
                images[variant] += self.family.saliency(self.model, calls, variant, self._local.inputs)

    def _images(self) -> dict[str, list[Tensor]]:
        """This thread's images since its last prompt."""
        if not hasattr(self._local, "images"):
            self._local.images = {v: [] for v in self.variants}
        return self._local.images

    def take(self, spans: list[Span], batch: int) -> dict[str, list[Tensor]]:
        """Saliency of each span, per variant. A batch expanded for beams or several sequences repeats its images."""
        taken = self._images()
        del self._local.images
        return {variant: _matched(images, spans, batch) for variant, images in taken.items()}


def _matched(images: list[Tensor], spans: list[Span], batch: int) -> list[Tensor]:
    if not images:
        raise MissingSignal(
            "The signal 'saliency' is missing: the vision encoder did not run for this prompt. Pass pixel_values, not "
            "precomputed features."
        )
    copies = len(spans) // len(images)
    lengths = [len(image) for image in images]
    if copies * len(images) == len(spans) and copies and batch % copies == 0:
        first = [i for i, span in enumerate(spans) if span.row % copies == 0]
        if [spans[i].count for i in first] == lengths:
            by_row: dict[int, list[Tensor]] = {}
            for i, image in zip(first, images, strict=True):
                by_row.setdefault(spans[i].row // copies, []).append(image)
            found = [image for row in range(batch) for image in by_row.get(row // copies, [])]
            if [len(image) for image in found] == [span.count for span in spans]:
                return found
    raise MissingSignal(
        f"The vision encoder ran for images of {lengths} tokens, but the prompt holds {[s.count for s in spans]}. Run "
        "one prompt at a time, with exactly its own images."
    )
