"""What stages read in the language model: attention of the layer before, text beside the image, hidden states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import CacheLayerMixin

from tokenprune.signals import taps
from tokenprune.core.selection import handed
from tokenprune.errors import BadInput, MissingSignal, Unsupported
from tokenprune.methods.signals import SIGNALS, Need
from tokenprune_kernels.attention import row_attention, row_products

if TYPE_CHECKING:
    from tokenprune.engine.forward import Forward

PAID = ("text_attention", "text_self_attention")


@dataclass
class Unit:
    """What a method selects from at once: one span, or all spans of a picture. spans: their numbers, in order."""

    spans: list[int]
    row: int
    columns: Tensor  # int64 [n]: rows that its tokens occupy now
    tokens: Tensor  # int64 [n]: which of the unit's tokens they are
    total: int
    after: Tensor | None = None  # int64 [m]: rows of the text after it, where a method reads them


@dataclass
class Heard:
    """What the taps of one pass left for the next stage."""

    row: Tensor | None = None  # float32 [B, H, K]: what the last prompt token pays
    paid: Tensor | None = None  # float32 [B, H, m, K]: the same for the rows of `text_rows`
    keys: Tensor | None = None  # [B, H', K, e]
    content: Tensor | None = None  # float32 [B, H, K]: products without rotation, before any softmax


@dataclass
class Signals:
    """Everything that the stages of one pass can read."""

    embeds: Tensor  # [B, L, d]: input embeddings of the prompt, visual features among them
    vision: dict[Need, list[Tensor]] = field(default_factory=dict)  # for each span [n, ...]
    given: dict[str, list[Tensor]] = field(default_factory=dict)  # by the user: for each span, or for each batch row
    heard: Heard = field(default_factory=Heard)


class _Enough(Exception):
    """Stops an attention module once its queries and keys are known."""


def project(module: nn.Module, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, float, float]:
    """Queries and keys that an attention module makes of hidden states [B, K, d], its scaling and softcap.

    The module itself computes them, with whatever norms and rotation it has, and is stopped before it attends.
    """
    found: list[Any] = []

    def catch(query: Tensor, key: Tensor, scaling: float, mask: Any, softcap: float) -> None:
        found[:] = query, key, scaling, softcap
        raise _Enough

    before = taps.listeners().get(module)
    taps.listeners()[module] = catch
    try:
        module(hidden_states=hidden, position_embeddings=rope, attention_mask=None)
    except _Enough:
        pass
    finally:
        taps.listeners().pop(module)
        if before is not None:
            taps.listeners()[module] = before
    return tuple(found)


def listener(forward: Forward, i: int, needs: tuple[Need, ...], layer: Callable[[], Any]) -> taps.Listener:
    """Tap for layer i that leaves what the stage after it needs. layer: its cache layer, once there is one."""

    def listen(query: Tensor, key: Tensor, scaling: float, mask: Any, softcap: float) -> None:
        heard = forward.signals.heard
        store = layer()
        if Need("attention_row") in needs:
            rows = forward.query_rows()[:, None]
            heard.row = _attention(forward, i, store, query, key, scaling, softcap, rows)[:, :, 0]
        if any(need.signal in PAID for need in needs):
            rows = nn.utils.rnn.pad_sequence(text_rows(forward), batch_first=True)
            if rows.shape[1]:
                heard.paid = _attention(forward, i, store, query, key, scaling, softcap, rows)
        if any(need.signal in ("keys", "text_keys") for need in needs):
            first = forward.seen_keys(i, store, key.shape[2])[2]
            heard.keys = key[:, :, first : first + forward.rows.length]

    return listen


def hear_content(forward: Forward, layer: nn.Module, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> None:
    """Products of the last prompt token with all rows in a layer, without rotation (FEATHER)."""
    plain = torch.ones_like(rope[0]), torch.zeros_like(rope[1])
    with torch.no_grad():
        query, key, scaling, softcap = project(layer.self_attn, layer.input_layernorm(hidden), plain)
        rows = forward.query_rows()[:, None].to(query.device)
        forward.signals.heard.content = row_products(query, key, rows, scaling, softcap)[:, :, 0]


def look_ahead(forward: Forward, i: int, layer: nn.Module, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> None:
    """What the last prompt token would pay in layer i, which has not run yet (PyramidDrop)."""
    if forward.past:
        raise Unsupported(
            "A method that looks ahead into the next layer needs the whole prompt in one pass. Start a new cache."
        )
    with torch.no_grad():
        query, key, scaling, softcap = project(layer.self_attn, layer.input_layernorm(hidden), rope)
        rows = forward.query_rows()[:, None]
        forward.signals.heard.row = _attention(forward, i, None, query, key, scaling, softcap, rows)[:, :, 0]


def _attention(
    forward: Forward,
    i: int,
    layer: CacheLayerMixin | None,
    query: Tensor,
    key: Tensor,
    scaling: float,
    softcap: float,
    rows: Tensor,
) -> Tensor:
    """What `rows` [B, m] pay to the rows of this pass in layer i; float32 [B, H, m, K], softmax over whole rows."""
    valid, slots, first = forward.seen_keys(i, layer, key.shape[2])
    own = (forward.past + forward.rows.prompt_columns()).gather(1, rows)[..., None]
    visible = valid[:, None] & (slots[:, None] <= own)
    window = forward.kinds[i].window
    near = slots[:, None] > own - window if window is not None else torch.ones_like(visible)
    if forward.blocks is not None:
        numbers = forward.block_numbers(valid.shape[1])
        same = (numbers[:, None] == numbers.gather(1, rows + first)[..., None]) & (numbers[:, None] >= 0)
        visible |= same & valid[:, None]
        if forward.blocks_ignore_window:
            near |= same
    visible = pad(visible & near, (0, key.shape[2] - visible.shape[2]))
    device = key.device
    paid = row_attention(query, key, rows.to(device), visible.to(device), scaling, softcap)
    return paid[..., first : first + forward.rows.length]


def text_rows(forward: Forward) -> list[Tensor]:
    """For each batch row the rows int64 [m] of its text after its first image, up to the last prompt token."""
    rows = forward.rows
    if rows.text is None:
        columns = rows.prompt_columns()
        other = torch.ones(forward.batch, forward.length, dtype=torch.bool)  # neither visual token nor separator
        for span in forward.spans:
            other[span.row, [*span.columns, *(s.column for s in span.separators)]] = False
        after = other & (~other).long().cumsum(1).bool()
        text = after.to(columns.device, non_blocking=True).gather(1, columns) & rows.valid
        text &= torch.arange(rows.length, device=columns.device) <= forward.query_rows()[:, None]
        rows.text = [row.nonzero().flatten() for row in text]
    return rows.text


def text_after(forward: Forward, row: int, spans: list[int]) -> Tensor:
    """int64 [m]: the rows of the text of batch row `row` after these spans, up to the last prompt token."""
    rows = text_rows(forward)[row]
    end = max(forward.spans[i].columns[-1] for i in spans)
    after = rows[forward.rows.prompt_columns()[row, rows] > end]
    if not len(after):
        raise BadInput("A text-guided method needs text after the image, and this prompt ends with it.")
    return after


def stacked(need: Need, forward: Forward, i: int, units: list[Unit], hidden: Tensor) -> Tensor | None:
    """A signal for units of equal shape, stacked; None where nothing was heard."""
    signals, heard = forward.signals, forward.signals.heard
    rows = handed([u.row for u in units], hidden.device)
    columns = torch.stack([u.columns for u in units])
    name = need.signal
    if SIGNALS[name].given:
        return _given(signals.given.get(name), name, forward, units, hidden.device)
    if SIGNALS[name].vision:
        return torch.stack([_of_unit(signals.vision[need], u) for u in units]).to(hidden.device)
    if name == "frame_features":
        return torch.stack([_frame_means(forward, u) for u in units])
    if name == "features":
        if need.variant == "whole":
            return signals.embeds[rows[:, None], handed([_all_columns(forward, u) for u in units], rows.device)]
        return signals.embeds[rows[:, None], forward.rows.prompt_columns()[rows[:, None], columns]]
    if name == "attention_row":
        source = heard.content if need.variant == "content" else heard.row
        if source is None:
            return None
        own = torch.stack([source[u.row][:, u.columns.to(source.device)] for u in units]).to(hidden.device)
        return own.softmax(-1) if need.variant == "content" else own
    if name in ("hidden", "text_hidden"):
        read = forward.model.norm if need.variant == "normed" else nn.Identity()
        if name == "hidden":
            return read(hidden[rows[:, None], columns])
        return read(torch.stack([hidden[u.row, u.after] for u in units]))
    if name == "text_embeddings":
        whole = forward.rows.prompt_columns()
        return torch.stack([signals.embeds[u.row, whole[u.row, u.after]] for u in units])
    if name == "keys" and heard.keys is not None:
        return torch.stack([heard.keys[u.row][:, u.columns] for u in units]).to(hidden.device)
    if name == "text_keys" and heard.keys is not None:
        return torch.stack([heard.keys[u.row][:, u.after] for u in units]).to(hidden.device)
    if name in PAID and heard.paid is not None:
        return torch.stack([_paid(name, forward, u) for u in units]).to(hidden.device)
    if name == "rope_weight":
        return torch.stack([_rope_weight(forward, i, u, hidden) for u in units])
    return None


def _all_columns(forward: Forward, unit: Unit) -> list[int]:
    """The prompt columns of all tokens of a unit, those that are gone by now counted."""
    return [column for i in unit.spans for column in forward.spans[i].columns]


def _frame_means(forward: Forward, unit: Unit) -> Tensor:
    """Mean of the embeddings of every frame, [t, d], tokens that are gone by now counted."""
    found = []
    for span in (forward.spans[i] for i in unit.spans):
        columns = handed(span.columns, forward.signals.embeds.device)
        found.append(forward.signals.embeds[unit.row, columns].unflatten(0, (span.grid[0], -1)).mean(1))
    return torch.cat(found)


def _given(
    values: list[Tensor] | None, name: str, forward: Forward, units: list[Unit], device: torch.device
) -> Tensor | None:
    """What the user brought for this prompt, checked against it."""
    if values is None:
        return None
    per_row, per_token = SIGNALS[name].per_row, SIGNALS[name].token_axis is not None
    expected = forward.batch if per_row else len(forward.spans)
    if len(values) != expected:
        what = "rows" if per_row else "images, tiles and videos"
        raise BadInput(f"{len(values)} tensors were given for {name}, but the prompt has {expected} {what}.")
    for span, value in zip(forward.spans, values, strict=False):
        wanted = span.count if per_token else span.grid[0]
        if not per_row and len(value) != wanted:
            what = "tokens" if per_token else "frames"
            raise BadInput(f"{name} was given {len(value)} {what} for an image or video of {wanted}.")
    if per_row:
        return torch.stack([values[u.row] for u in units]).to(device)
    if not per_token:
        return torch.stack([torch.cat([values[i] for i in u.spans]) for u in units]).to(device)
    return torch.stack([_of_unit(values, u) for u in units]).to(device)


def _of_unit(per_span: list[Tensor], unit: Unit) -> Tensor:
    return torch.cat([per_span[i] for i in unit.spans])[unit.tokens.to(per_span[unit.spans[0]].device)]


def _paid(name: str, forward: Forward, unit: Unit) -> Tensor:
    paid = forward.signals.heard.paid[unit.row]
    last = len(text_rows(forward)[unit.row])
    paid = paid[:, last - len(unit.after) : last]
    return paid[..., (unit.columns if name == "text_attention" else unit.after).to(paid.device)]


def _rope_weight(forward: Forward, i: int, unit: Unit, hidden: Tensor) -> Tensor:
    """Product of all-ones vectors rotated to the places of text and visual tokens, over sqrt(e); float32 [m, n]."""
    cos, sin = (x.float() for x in forward.rope(i, hidden, None))
    if cos.ndim != 3:
        raise MissingSignal("rope_weight is made for one axis of position ids; this model rotates by three.")
    row = unit.row if len(cos) > 1 else 0
    turns = cos[row, unit.after] @ cos[row, unit.columns].mT + sin[row, unit.after] @ sin[row, unit.columns].mT
    return turns / cos.shape[-1] ** 0.5
