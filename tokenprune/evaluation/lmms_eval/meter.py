"""What each prompt of a model costs, read by hooks: tokens, prefill time, cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from lmms_eval.api.instance import TokenCounts
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenprune.engine.cache import cache_in
from tokenprune.engine.report import kv_bytes
from tokenprune.engine.run import Run, language_model
from tokenprune.engine.stopwatch import Stopwatch
from tokenprune.families.layout import placeholder_columns
from tokenprune.families.registry import family_of


@dataclass(frozen=True)
class RowCost:
    """One row of a prompt.

    visual_tokens: that entered the prompt (unpruned: its placeholders, separators of tiles counted). kept_tokens: that
    the last decoder layer still sees; average_tokens: mean over the layers, and over the rows of the batch. prefill_ms:
    the language model's pass over the whole batch of `batch` rows, choosing included. kv_bytes: keys and values in the
    cache after it, a row's share of its batch.
    """

    visual_tokens: int
    kept_tokens: int
    average_tokens: float
    prefill_ms: float
    kv_bytes: int
    batch: int


@dataclass
class Measured(TokenCounts):
    """Token counts of lmms-eval's sample log, with what pruning did to this sample."""

    cost: RowCost | None = None

    def to_dict(self) -> dict[str, Any]:
        """Numbers for the sample log."""
        return super().to_dict() | ({} if self.cost is None else asdict(self.cost))


@dataclass
class _Prompt:
    visual: list[int]
    watch: Stopwatch
    kept: list[int] | None = None
    average: float = 0.0
    held: int = 0


class Meter:
    """Within its block, every prompt that the model reads is measured; `take` hands out what there is so far."""

    def __init__(self, model: PreTrainedModel, run: Run | None) -> None:
        self._model, self._run = model, run
        self._language = language_model(model)
        self._placeholders = tuple(family_of(model).placeholders(model).values())
        self._visual: list[int] | None = None
        self._open: _Prompt | None = None
        self._prompts: list[_Prompt] = []
        self._begun = self._read = 0

    def __enter__(self) -> Meter:
        # The pruner's own hooks are on already: ours come before them and after them, so that choosing counts.
        self._handles = [
            self._model.register_forward_pre_hook(self._before_model, with_kwargs=True, prepend=True),
            self._language.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True),
            self._language.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def failed(self) -> int:
        """Prompts that were begun and not read to their end."""
        return self._begun - self._read

    def take(self) -> list[list[RowCost]]:
        """Costs of the prompts since the last call, row by row. Waits for the device."""
        found, self._prompts = [self._costs(prompt) for prompt in self._prompts], []
        return found

    def _before_model(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        ids = args[0] if args else kwargs.get("input_ids")
        self._visual = None
        if isinstance(ids, Tensor) and ids.shape[1] > 1:
            self._visual = self._count(ids)
            self._begun += 1

    def _count(self, ids: Tensor) -> list[int]:
        columns = placeholder_columns(ids, self._placeholders).values()
        return [sum(map(len, rows)) for rows in zip(*columns, strict=True)]

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._visual is not None:
            self._open = _Prompt(self._visual, Stopwatch(self._model.device))
            self._visual = None

    def _after(self, module: nn.Module, args: tuple, output: Any) -> None:
        prompt, self._open = self._open, None
        if prompt is None:
            return
        prompt.watch.stop()
        cache = cache_in(output)
        prompt.held = 0 if cache is None else kv_bytes(cache)[0]
        if self._run is not None and any(prompt.visual):
            rows = range(len(prompt.visual))
            prompt.visual = [sum(span.count for span in self._run.spans if span.row == row) for row in rows]
            layers = self._run.report().layer_tokens
            prompt.average = sum(layers) / len(layers) / len(rows)
            prompt.kept = [len(columns) for columns in self._run.kept[-1]] if self._run.kept else prompt.visual
        self._prompts.append(prompt)
        self._read += 1

    @staticmethod
    def _costs(prompt: _Prompt) -> list[RowCost]:
        batch = len(prompt.visual)
        kept = prompt.visual if prompt.kept is None else prompt.kept
        average = sum(prompt.visual) / batch if prompt.kept is None else prompt.average
        time, held = 1000 * prompt.watch.seconds, prompt.held // batch
        return [
            RowCost(visual, left, average, time, held, batch) for visual, left in zip(prompt.visual, kept, strict=True)
        ]
