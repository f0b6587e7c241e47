"""Signals of the language model: taps that capture attention, and providers that hand a method what it asked for.

A provider gives a signal for selectables of equal shape, stacked; None where nothing was captured.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokenprune.core.selection import to_device
from tokenprune.errors import MissingSignal
from tokenprune.signals.need import Need
from tokenprune.signals.reading import Attention, Reading, Selectable

Tap = Callable[[Attention], None]
Provider = Callable[[Reading, list[Selectable], Need], "Tensor | None"]

# Taps.


def tap_last_row(attention: Attention) -> None:
    """float32 [B, H, K]: what the last prompt token pays."""
    attention.captured["last_row"] = attention.paid(attention.rows.query_rows[:, None])[:, :, 0]


def tap_content(attention: Attention) -> None:
    """float32 [B, H, K]: products of the last prompt token with all rows, before any softmax (FEATHER)."""
    attention.captured["content"] = attention.products(attention.rows.query_rows[:, None])[:, :, 0]


def tap_text(attention: Attention) -> None:
    """float32 [B, H, m, K]: what the text after the images pays."""
    rows = pad_sequence(attention.rows.text_rows, batch_first=True)
    if rows.shape[1]:
        attention.captured["text"] = attention.paid(rows)


def tap_keys(attention: Attention) -> None:
    """[B, H', K, e]: keys, rotated."""
    attention.captured["keys"] = attention.keys


# Providers.


def features(reading: Reading, units: list[Selectable], need: Need) -> Tensor:
    """[S, n, d] of the tokens that are left, or of all that there were at first."""
    batch = _batch_rows(reading, units)
    if need.variant == "whole":
        columns = [to_device([c for i in u.spans for c in reading.rows.spans[i].columns], batch.device) for u in units]
        return reading.embeds[batch, torch.stack(columns)]
    return reading.embeds[batch, reading.rows.column[batch, torch.stack([u.rows for u in units])]]


def frame_features(reading: Reading, units: list[Selectable], need: Need) -> Tensor:
    """[S, t, d]: mean of the embeddings of every frame, tokens that are gone by now counted."""
    found = []
    for unit in units:
        frames = []
        for span in (reading.rows.spans[i] for i in unit.spans):
            columns = to_device(span.columns, reading.embeds.device)
            frames.append(reading.embeds[unit.row, columns].unflatten(0, (span.grid[0], -1)).mean(1))
        found.append(torch.cat(frames))
    return torch.stack(found)


def hidden(reading: Reading, units: list[Selectable], need: Need) -> Tensor:
    """[S, n, d] at the stage's input."""
    found = reading.hidden[_batch_rows(reading, units), torch.stack([u.rows for u in units])]
    return reading.normalize(found) if need.variant == "normed" else found


def text_hidden(reading: Reading, units: list[Selectable], need: Need) -> Tensor:
    """[S, m, d] of the text after the span."""
    found = torch.stack([reading.hidden[u.row, u.after] for u in units])
    return reading.normalize(found) if need.variant == "normed" else found


def text_embeddings(reading: Reading, units: list[Selectable], need: Need) -> Tensor:
    """[S, m, d]: input embeddings of the text after the span."""
    return torch.stack([reading.embeds[u.row, reading.rows.column[u.row, u.after]] for u in units])


def attention_row(reading: Reading, units: list[Selectable], need: Need) -> Tensor | None:
    """[S, H, n]: what the last prompt token pays."""
    source = reading.captured.get("content" if need.variant == "content" else "last_row")
    if source is None:
        return None
    own = torch.stack([source[u.row][:, u.rows.to(source.device)] for u in units]).to(reading.hidden.device)
    return own.softmax(-1) if need.variant == "content" else own


def text_attention(reading: Reading, units: list[Selectable], need: Need) -> Tensor | None:
    """[S, H, m, n]: what the text after the span pays to it."""
    return _paid_by_text(reading, units, lambda unit: unit.rows)


def text_self_attention(reading: Reading, units: list[Selectable], need: Need) -> Tensor | None:
    """[S, H, m, m]: what the text after the span pays to that text."""
    return _paid_by_text(reading, units, lambda unit: unit.after)


def keys(reading: Reading, units: list[Selectable], need: Need) -> Tensor | None:
    """[S, H, n, e]."""
    return _keys(reading, units, lambda unit: unit.rows)


def text_keys(reading: Reading, units: list[Selectable], need: Need) -> Tensor | None:
    """[S, H, m, e] of the text after the span."""
    return _keys(reading, units, lambda unit: unit.after)


def rope_weight(reading: Reading, units: list[Selectable], need: Need) -> Tensor:
    """float32 [S, m, n]: product of all-ones vectors rotated to the positions of text and visual tokens, over
    sqrt(e)."""
    cos, sin = (x.float() for x in reading.rope())
    if cos.ndim != 3:
        raise MissingSignal("rope_weight is made for one axis of position ids; this model rotates by three.")
    found = []
    for unit in units:
        row = unit.row if len(cos) > 1 else 0
        text, visual = unit.after, unit.rows
        found.append(cos[row, text] @ cos[row, visual].mT + sin[row, text] @ sin[row, visual].mT)
    return torch.stack(found) / cos.shape[-1] ** 0.5


def _batch_rows(reading: Reading, units: list[Selectable]) -> Tensor:
    return to_device([u.row for u in units], reading.hidden.device)[:, None]


def _paid_by_text(reading: Reading, units: list[Selectable], to: Callable[[Selectable], Tensor]) -> Tensor | None:
    paid = reading.captured.get("text")
    if paid is None:
        return None
    found = []
    for unit in units:
        last = len(reading.rows.text_rows[unit.row])
        found.append(paid[unit.row][:, last - len(unit.after) : last][..., to(unit).to(paid.device)])
    return torch.stack(found).to(reading.hidden.device)


def _keys(reading: Reading, units: list[Selectable], of: Callable[[Selectable], Tensor]) -> Tensor | None:
    found = reading.captured.get("keys")
    if found is None:
        return None
    return torch.stack([found[u.row][:, of(u)] for u in units]).to(reading.hidden.device)
