"""A pruned run beside its reference, layer by layer: where they part first, and how far apart they are at most."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.checking.reference import Outcome, hidden_from
from tokenprune.checking.shortened import Shortened, shortened_to
from tokenprune.engine.run import Run
from tokenprune.methods.decoding import DecodingMethod
from tokenprune.methods.place import Decode

# Of the largest value at a place; what kernels of other shapes and orders of sums are seen to explain.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 3e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Parting:
    """The first place where two runs differ by more than is allowed.

    call: 0 for the prompt, n for the n-th decoding step.
    layer: decoder layer whose output differs; None for the logits.
    stage: number of the last stage up to that layer; None before the first.
    row, column: of the unpruned batch.
    difference: the largest absolute one at that token.
    allowed: what rounding explains.
    """

    call: int
    layer: int | None
    stage: int | None
    row: int
    column: int
    difference: float
    allowed: float

    def __str__(self) -> str:
        when = "the prompt" if self.call == 0 else f"decoding step {self.call}"
        where = "the logits" if self.layer is None else f"layer {self.layer}"
        stage = "before any stage" if self.stage is None else f"after stage {self.stage}"
        return (
            f"in {when} at {where} ({stage}), row {self.row}, column {self.column}: off by {self.difference:.2g}, "
            f"where rounding explains {self.allowed:.2g}"
        )


class Recorder:
    """What the layers of a text model put out in this thread, call by call: [B, K, d] each.

    layers: those that are recorded; None: all.
    """

    def __init__(self, text_model: Any, layers: Sequence[int] | None = None) -> None:
        self.text_model = text_model
        self.layers = range(len(text_model.layers)) if layers is None else layers
        self.calls: list[dict[int, Tensor]] = []
        self._thread: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record while this is open."""
        self._thread = threading.get_ident()
        handles = [self.text_model.register_forward_pre_hook(self._next_call)]
        handles += [self.text_model.layers[i].register_forward_hook(self._note(i)) for i in self.layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _mine(self) -> bool:
        return self._thread == threading.get_ident()

    def _next_call(self, module: nn.Module, args: tuple) -> None:
        if self._mine():
            self.calls.append({})

    def _note(self, i: int) -> Callable[[nn.Module, tuple, Any], None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            if self._mine():
                self.calls[-1][i] = _hidden(output).detach()

        return hook


class Comparison:
    """Holds a reference that runs against what a `Recorder` heard of the pruned run on a prompt of `length` columns.

    tolerance: what rounding may explain, as a share of the largest value of the reference at that place.
    """

    def __init__(self, run: Run, recorded: Recorder, length: int, tolerance: float) -> None:
        self.run, self.recorded, self.length, self.tolerance = run, recorded, length, tolerance
        self.parted: Parting | None = None
        self.largest = 0.0
        self._call = -1
        self._shortened: Shortened | None = None

    @contextmanager
    def against(self, outcome: Outcome | None) -> Iterator[None]:
        """The model that runs while this is open is the reference: it hides what `outcome` dropped, or is the model as
        it is. The run has to be removed or lifted."""
        text_model = self.run.text_model
        handles = [text_model.register_forward_pre_hook(self._next_call)]
        for i in self.recorded.layers:
            handles.append(text_model.layers[i].register_forward_hook(self._layer(i)))
        try:
            if outcome is None:
                yield
            elif not all(kind.keys for kind in self.run.layer_kinds):
                with shortened_to(text_model, outcome) as self._shortened:
                    yield
            else:
                with _maskable(text_model), hidden_from(text_model, outcome):
                    yield
        finally:
            self._shortened = None
            for handle in handles:
                handle.remove()

    def logits(self, call: int, pruned: Tensor, reference: Tensor, columns: Tensor) -> None:
        """Compare logits [B, n, V] of tokens that stand at `columns`, int64 [B, n], -1 for none."""
        self._compare(call, None, pruned, reference, columns)

    def _next_call(self, module: nn.Module, args: tuple) -> None:
        self._call += 1

    def _layer(self, i: int) -> Callable[[nn.Module, tuple, Any], None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            found, reference = self.recorded.calls[self._call][i], _hidden(output)
            if self._call == 0:
                columns = self.run.columns(i).to(reference.device)
                if self._shortened is not None:
                    return self._compare(0, i, found, self._shortened.gather(columns, reference), columns)
                reference = reference.gather(1, columns.clamp(min=0)[..., None].expand(-1, -1, reference.shape[-1]))
            else:
                column = self.length + self._call - 1
                columns = torch.full(reference.shape[:2], column, device=reference.device)
            self._compare(self._call, i, found, reference, columns)

        return hook

    def _compare(self, call: int, layer: int | None, found: Tensor, reference: Tensor, columns: Tensor) -> None:
        counts = columns >= 0
        reference = reference.masked_fill(~counts[..., None], 0).float()
        found = found.to(reference.device).masked_fill(~counts[..., None], 0).float()
        allowed = self.tolerance * max(1.0, float(reference.abs().max()))
        apart = (found - reference).abs().amax(-1).nan_to_num(nan=torch.inf)
        worst = float(apart.max())
        if layer is None:
            self.largest = max(self.largest, worst)
        if worst <= allowed or self.parted is not None:
            return
        row, place = divmod(int(apart.argmax()), apart.shape[1])
        passed = [n for n, stage in enumerate(self.run.stages) if layer is None or stage.layer <= layer]
        self.parted = Parting(
            call, layer, passed[-1] if passed else None, row, int(columns[row, place]), worst, allowed
        )


def outcome_of(run: Run, input_ids: Tensor, attention_mask: Tensor | None) -> Outcome:
    """What a run did to the prompt that it saw last, as the reference takes it. int64 [B, L] and [B, L] or None, as the
    model got them."""
    ids = input_ids.cpu()
    tokens = torch.tensor(list(run.family.placeholders(run.model).values()))
    visual, removable = torch.zeros_like(ids, dtype=torch.bool), torch.isin(ids, tokens)
    for span in run.spans:
        visual[span.row, list(span.columns)] = True
        removable[span.row, [*span.columns, *(s.column for s in span.separators)]] = True
    waits = [stage.layer for stage in run.stages if stage.method.sets_aside or stage.method.recalls]
    return Outcome(
        kept={stage.layer: _with_separators(run, rows) for stage, rows in zip(run.stages, run.kept, strict=True)},
        removable=removable,
        visual=visual,
        unpadded=torch.ones_like(visual) if attention_mask is None else attention_mask.cpu().bool(),
        merges={stage.layer: list(merges) for stage, merges in zip(run.stages, run.merges, strict=True) if merges},
        bypass=(waits[0], waits[1]) if waits else None,
        looked=_read_steps(run),
        compact=run.policies.positions == "compact",
    )


def _with_separators(run: Run, rows: list[Tensor]) -> list[Tensor]:
    """Kept visual columns, and those of the separators that still close one of them."""
    kept = [set(row.tolist()) for row in rows]
    for span in run.spans:
        for column, first, last in span.separators:
            if kept[span.row] & set(span.columns[first:last]):
                kept[span.row].add(column)
    return [torch.tensor(sorted(row), dtype=torch.long) for row in kept]


def _read_steps(run: Run) -> list[list[list[Tensor] | None]]:
    """For each decoding step, for each layer, for each row the visual columns seen; None: all of them."""
    if run.decoding is None:
        return []
    stages = run.decoding.stages
    starts = [place.start for place in (stage.place for stage in stages) if isinstance(place, Decode)]
    method = stages[-1].method
    reuses = isinstance(method, DecodingMethod) and method.reuses
    steps: list[list[list[Tensor] | None]] = []
    last: list[Tensor] | None = None
    for step in run.steps:
        layers: list[list[Tensor] | None] = []
        for i in range(len(run.text_model.layers)):
            passed = [n for n, start in enumerate(starts) if start <= i]
            # The layer that a stage chooses by sees everything, and so do sliding windows.
            whole = run.layer_kinds[i].window is not None or i + 1 in starts
            layers.append(None if whole else step.columns[passed[-1]] if passed else last if reuses else None)
        last = step.columns[-1]
        steps.append(layers)
    return steps


@contextmanager
def _maskable(text_model: Any) -> Iterator[None]:
    """Attention that takes any mask: other kernels than eager and sdpa give way to sdpa for the time."""
    config, own = text_model.config, text_model.config._attn_implementation
    config._attn_implementation = own if own in ("eager", "sdpa") else "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = own


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
