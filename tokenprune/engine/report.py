"""What a pruned prompt really cost, beside what it would have cost unpruned."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers.cache_utils import Cache

from tokenprune.core.flops import LayerShape, block_flops, field_flops, layer_flops
from tokenprune.engine.cache import PrunedLayer
from tokenprune.engine.decode_steps import StepReport
from tokenprune.engine.encoder_call import EncoderWork
from tokenprune.engine.forward import Forward, Merged
from tokenprune.engine.stopwatch import Stopwatch, Stopwatches
from tokenprune.families.base import Span, mlp_of
from tokenprune.methods.place import EncoderPlace, place_of
from tokenprune.methods.stage import Stage


@dataclass(frozen=True)
class StageReport:
    """One stage: visual tokens of each batch row before and after it, and what its selection took."""

    at: int | EncoderPlace
    method: str
    before: list[int]
    after: list[int]
    selection_ms: float = 0.0


@dataclass(frozen=True)
class Decoding:
    """Means over the decoding steps so far: visual tokens there are and looked at (mean over stages), the share of
    steps that chose anew, keys and values held and read, host time in choosing and in attention."""

    steps: int
    visual: float
    looked_at: float
    anew: float
    held_bytes: float
    read_bytes: float
    selection_ms: float
    attention_ms: float


@dataclass(frozen=True)
class EncoderReport:
    """The vision encoder's part: rows that each block worked on and would have unpruned, FLOPs of the blocks, and the
    time of the whole encoder, projector and choosing included; on a GPU it is the device's."""

    rows: list[int]
    dense_rows: list[int]
    flops: int
    dense_flops: int
    ms: float


def measure_encoder(calls: Sequence[EncoderWork], config: Any) -> EncoderReport | None:
    """What the calls of an encoder came to, summed; None without any. config: the model's."""
    if not calls:
        return None
    width = max(len(call.blocks) for call in calls)
    rows, dense_rows, flops, dense_flops = [0] * width, [0] * width, 0, 0
    for call in calls:
        for i, work in enumerate(call.blocks):
            shape = layer_shape(work.block, config.vision_config)
            own, dense = work.lengths(work.own), work.lengths(work.dense)
            rows[i] += sum(own)
            dense_rows[i] += sum(dense)
            flops += block_flops(shape, own)
            if work.mlp_rows is not None:
                flops -= 2 * (sum(own) - work.mlp_rows) * linear_params(mlp_of(work.block))
                rows[i] += work.mlp_rows - sum(own)
            dense_flops += block_flops(shape, dense)
    return EncoderReport(rows, dense_rows, flops, dense_flops, 1000 * sum(call.watch.seconds for call in calls))


def summary(steps: list[StepReport]) -> Decoding | None:
    """The steps on average; None without any."""
    if not steps:
        return None

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(steps)

    return Decoding(
        steps=len(steps),
        visual=mean(s.visual for s in steps),
        looked_at=mean(sum(s.chosen) / len(s.chosen) for s in steps),
        anew=mean(s.anew > 0 for s in steps),
        held_bytes=mean(s.held_bytes for s in steps),
        read_bytes=mean(s.read_bytes for s in steps),
        selection_ms=mean(s.selection_ms for s in steps),
        attention_ms=mean(s.attention_ms for s in steps),
    )


@dataclass(frozen=True)
class Report:
    """The last prompt. Token counts are visual tokens summed over the batch; FLOPs and bytes are of its prefill.

    average_tokens: visual tokens that a decoder layer processes, mean over layers; final_tokens: in the last layer.
    flops: this model's decoder layers, text included, causal attention. field_flops: the papers' image-only formula.
    kv_bytes: keys and values in the cache after the prompt (None where no cache was used). selection_ms: time in
    selection; on a GPU it is the device's. spared_blocks: how many blocks of the vision encoder did not run, since
    nobody reads what they make, and of how many.
    """

    method: str
    positions: str
    stages: list[StageReport]
    tokens: int
    average_tokens: float
    final_tokens: int
    layer_tokens: list[int]
    flops: int
    dense_flops: int
    field_flops: int
    dense_field_flops: int
    kv_bytes: int | None
    dense_kv_bytes: int | None
    selection_ms: float = 0.0
    decoding: Decoding | None = None
    encoder: EncoderReport | None = None
    spared_blocks: tuple[int, int] = (0, 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return asdict(self)

    def table(self) -> Table:
        """The report as a rich table."""
        table = Table(title=f"{self.method}, positions {self.positions}")
        for column in ("", "dense", "pruned", "kept"):
            table.add_column(column, justify="right" if column else "left")
        for stage in self.stages:
            before, after = sum(stage.before), sum(stage.after)
            table.add_row(
                f"visual tokens {place_of(stage.at)} ({stage.method})", str(before), str(after), _share(after, before)
            )
        for row in self.figures():
            table.add_row(*row)
        if self.encoder is not None:
            table.add_row("vision encoder, ms", "", f"{self.encoder.ms:.2f}", "")
        table.add_row("selection, ms", "", f"{self.selection_ms:.2f}", "")
        if self.decoding is not None:
            d = self.decoding
            table.add_row(
                "KV read by a step, KiB", "", f"{d.read_bytes / 1024:.1f}", f"held: {d.held_bytes / 1024:.1f}"
            )
            table.add_row("a step, ms in choosing / attention", "", f"{d.selection_ms:.2f} / {d.attention_ms:.2f}", "")
        return table

    def figures(self) -> list[tuple[str, str, str, str]]:
        """What can be said of both sides: its name, unpruned, pruned, and the share of it that is left."""
        rows = [
            ("visual tokens, average over layers", self.tokens, self.average_tokens, "{:.1f}"),
            ("visual tokens, last layer", self.tokens, self.final_tokens, "{}"),
            ("prefill GFLOPs, this model", self.dense_flops / 1e9, self.flops / 1e9, "{:.3f}"),
            ("prefill GFLOPs, image-only formula", self.dense_field_flops / 1e9, self.field_flops / 1e9, "{:.3f}"),
        ]
        spared, blocks = self.spared_blocks
        if spared:
            rows.append(("encoder blocks that run", blocks, blocks - spared, "{}"))
        if self.encoder is not None:
            e = self.encoder
            rows.append(("patches, average over encoder blocks", _mean(e.dense_rows), _mean(e.rows), "{:.1f}"))
            rows.append(("encoder GFLOPs", e.dense_flops / 1e9, e.flops / 1e9, "{:.3f}"))
        if self.kv_bytes is not None and self.dense_kv_bytes is not None:
            rows.append(("KV cache, KiB", self.dense_kv_bytes / 1024, self.kv_bytes / 1024, "{:.1f}"))
        if self.decoding is not None:
            rows.append(("visual tokens a step looks at", self.decoding.visual, self.decoding.looked_at, "{:.1f}"))
        return [(name, style.format(a), style.format(b), _share(b, a)) for name, a, b, style in rows]

    def __str__(self) -> str:
        console = Console(width=100)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def linear_params(module: nn.Module) -> int:
    """Weights of the linear maps inside a module."""
    holders: list[Any] = [m for m in module.modules() if hasattr(m, "in_features")]
    # An adapter's wrapper tells the size of the layer inside it, which counts by itself.
    leaves = [m for m in holders if not any(hasattr(inner, "in_features") for inner in list(m.modules())[1:])]
    return sum(m.in_features * m.out_features for m in leaves)


def layer_shape(layer: nn.Module, config: Any) -> LayerShape:
    """What a layer costs, from its linear maps, and what its attention hands on or the heads of its config."""
    handed: Any = getattr(getattr(layer, "self_attn", None), "o_proj", None)
    if hasattr(handed, "in_features"):  # heads may differ from layer to layer
        return LayerShape(linear_params(layer), handed.in_features)
    heads = getattr(config, "num_attention_heads", None) or config.num_heads
    head = getattr(config, "head_dim", None) or (getattr(config, "embed_dim", None) or config.hidden_size) // heads
    return LayerShape(linear_params(layer), heads * head)


@dataclass(frozen=True)
class Prefill:
    """What is known of a finished prompt. The report lacks the times, which may not be there yet.

    history: from which layer on, the prompt column of each row (int64 [B, K]), and bool [B, K], False for padding.
    """

    history: list[tuple[int, Tensor, Tensor]]
    kept: list[list[Tensor]]
    spans: list[Span]
    merged: list[list[Merged]]
    untimed: Report
    watches: list[Stopwatch | Stopwatches]
    encode: Callable[[], EncoderReport | None]
    steps: list[StepReport] = field(default_factory=list)  # decoding steps since, which are added as they come

    def columns(self, layer: int) -> Tensor:
        """int64 [B, K]: the prompt column of each row in a decoder layer, -1 for padding."""
        column, valid = [(column, valid) for at, column, valid in self.history if at <= layer][-1]
        return column.masked_fill(~valid, -1)

    def report(self) -> Report:
        """The report with its times (which waits for the device), and with the decoding steps since."""
        times = [1000 * watch.seconds for watch in self.watches]
        stages = [replace(stage, selection_ms=ms) for stage, ms in zip(self.untimed.stages, times, strict=True)]
        return replace(
            self.untimed,
            stages=stages,
            selection_ms=sum(times),
            decoding=summary(self.steps),
            encoder=self.encode(),
        )


def measure(
    forward: Forward,
    cache: Cache | None,
    stages: Sequence[Stage],
    decoding: Sequence[Stage],
    positions: str,
    shapes: Sequence[LayerShape],
    vision: Any,
    spared: tuple[int, int],
) -> Prefill:
    """Look back on a finished prompt. decoding: the stages at every decoding step. shapes: of the decoder layers.
    vision: the whole model's config, which has the vision encoder's. spared: encoder blocks that do not run, of how
    many."""
    config = forward.model.config
    layers = range(len(shapes))
    visual = sum(span.count for span in forward.state.spans)
    piece, dense_rows = forward.piece, forward.history[0][1].counts
    states = [forward.state_before(i) for i in layers]
    past = [forward.past_rows.get(i, piece.past) for i in layers]
    tokens = [sum(len(rows) for rows in state.token_rows) for state in states]
    sizes = (config.hidden_size, config.intermediate_size)
    kv, dense_kv = (None, None) if cache is None else kv_bytes(cache)
    done = [
        StageReport(stage.at, stage.method.name, record.before, record.after)
        for stage, record in zip(stages, forward.records, strict=True)
    ]
    report = Report(
        method=" + ".join(dict.fromkeys([*(s.method for s in done), *(s.method.name for s in decoding)])),
        positions=positions,
        stages=done,
        tokens=visual,
        average_tokens=sum(tokens) / len(tokens),
        final_tokens=tokens[-1],
        layer_tokens=tokens,
        flops=sum(
            layer_flops(shape, n, p) for shape, state, p in zip(shapes, states, past, strict=True) for n in state.counts
        ),
        dense_flops=sum(layer_flops(shape, n, piece.past) for shape in shapes for n in dense_rows),
        field_flops=field_flops(tokens, *sizes),
        dense_field_flops=field_flops([visual] * len(layers), *sizes),
        kv_bytes=kv,
        dense_kv_bytes=dense_kv,
        spared_blocks=spared,
    )
    watches = [record.watch for record in forward.records]
    history = [(at, state.column, state.valid) for at, state in forward.history]
    encode = functools.partial(measure_encoder, forward.encoded, vision)
    return Prefill(history, forward.kept, list(forward.state.spans), forward.merged, report, watches, encode)


def kv_bytes(cache: Cache) -> tuple[int, int]:
    """Bytes really held, and what the same cache would hold unpruned."""
    held = dense = 0
    for layer in cache.layers:
        pruned = layer if isinstance(layer, PrunedLayer) else None
        store: Any = pruned.store if pruned else layer
        size = sum(t.nbytes for value in vars(store).values() for t in _tensors(value) if t.ndim > 1)
        held += size
        if pruned is None:
            dense += size
        elif pruned.capacity is not None:
            dense += size // store.max_cache_len * pruned.capacity
        else:
            length = pruned.logical if pruned.window is None else min(pruned.logical, pruned.window - 1)
            dense += size * length // max(pruned.rows, 1)
    return held, dense


def _tensors(value: object) -> list[Tensor]:
    """The tensors in a cache layer's attribute: quantized layers keep tuples."""
    if isinstance(value, (tuple, list)):
        return [t for part in value for t in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []
