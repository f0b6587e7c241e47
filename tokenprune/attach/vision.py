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
        if output is None:  # the encoder broke
            return
        passes = self._passes()
        for variant, calls in self._local.calls.items():
            if calls:
                passes[variant].append(self.family.saliency(self.model, calls, variant, self._local.inputs))

    def _passes(self) -> dict[str, list[list[Tensor]]]:
        """For each variant, what each pass of the encoder since this thread's last prompt gave: [n] per image."""
        if not hasattr(self._local, "passes"):
            self._local.passes = {v: [] for v in self.variants}
        return self._local.passes

    def forget(self) -> None:
        """Drop what the encoder gave for a prompt that was refused or broke."""
        self._local.__dict__.pop("passes", None)

    def take(self, spans: list[Span], batch: int) -> dict[str, list[Tensor]]:
        """Saliency of each span, per variant. Images and videos come from a pass of the encoder each, in that order."""
        taken = self._passes()
        self.forget()
        members = [[i for i, span in enumerate(spans) if span.media == media] for media in ("image", "video")]
        members = [group for group in members if group]
        found: dict[str, list[Tensor]] = {}
        for variant, passes in taken.items():
            if not passes:
                raise MissingSignal(
                    "The signal 'saliency' is missing: the vision encoder did not run for this prompt. Pass "
                    "pixel_values, not precomputed features."
                )
            lengths = [[len(image) for image in images] for images in passes]
            matched = {}
            if len(passes) == len(members):
                for group, images in zip(members, passes, strict=True):
                    own = _matched(images, [spans[i] for i in group], batch)
                    matched |= dict(zip(group, own, strict=False))
            if len(matched) != len(spans):
                raise MissingSignal(
                    f"The vision encoder ran for images of {lengths} tokens, but the prompt holds "
                    f"{[s.count for s in spans]}. Run one prompt at a time, with exactly its own images."
                )
            found[variant] = [matched[i] for i in range(len(spans))]
        return found


def _matched(images: list[Tensor], spans: list[Span], batch: int) -> list[Tensor]:
    """One image for each span, or nothing where they do not fit.

    A batch expanded for beams or several sequences repeats each row `copies` times, but the encoder ran once.
    """
    copies = len(spans) // len(images)
    if copies * len(images) != len(spans) or not copies or batch % copies:
        return []
    by_row: dict[int, list[Tensor]] = {}
    first = [span for span in spans if span.row % copies == 0]
    if len(first) != len(images):
        return []
    for span, image in zip(first, images, strict=True):
        by_row.setdefault(span.row // copies, []).append(image)
    found = [image for row in range(batch) for image in by_row.get(row // copies, [])]
    return found if [len(image) for image in found] == [span.count for span in spans] else []
