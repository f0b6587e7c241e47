"""Cuts the placeholders of a prompt into spans."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby

from torch import Tensor

from tokenprune.errors import Unsupported
from tokenprune.families.base import Part, Separator, Span

CUT = (
    "What chunked prefill cuts cannot be pruned; prefill in one piece, and pass a prompt with exactly its own images "
    "and videos."
)


def placeholder_columns(input_ids: Tensor, tokens: Iterable[int]) -> dict[int, list[list[int]]]:
    """For each of these tokens, for each row of `input_ids` [B, L], the ascending columns where it stands."""
    found = {}
    for token in set(tokens):
        there = (input_ids == token).cpu().numpy()  # the host has to know where images stand, once for each prompt
        found[token] = [row.nonzero()[0].tolist() for row in there]
    return found


def lay_out(items: list[list[Part]], rows: list[list[int]], media: str) -> list[tuple[Span, int]]:
    """Spans of one medium, each with the number of its part in its item: `items` take the placeholders in turn.

    rows: for each row of the batch its placeholder columns. A batch that generate() expanded for beams or several
    sequences repeats each row; then the items were encoded once and serve every copy.
    """
    held = sum(map(len, rows))
    needed = sum(part.length for parts in items for part in parts)
    copies = held // needed if needed else 0
    if not copies or copies * needed != held or len(rows) % copies:
        raise Unsupported(f"The encoder gave {needed} {media} features, the prompt has {held} {media} tokens. {CUT}")
    spans: list[tuple[Span, int]] = []
    queue = list(enumerate(items))
    for first in range(0, len(rows), copies):
        mine, length = [], 0
        while queue and length < len(rows[first]):
            number, parts = queue.pop(0)
            mine.append((number, parts))
            length += sum(part.length for part in parts)
        for row in range(first, first + copies):
            if length != len(rows[row]):
                raise Unsupported(
                    f"Row {row} has {len(rows[row])} {media} tokens, but its {media}s need {length}. {CUT}"
                )
            at = 0
            for number, parts in mine:
                for i, part in enumerate(parts):
                    spans.append((_span(part, rows[row][at : at + part.length], row, media, number), i))
                    at += part.length
    return spans


def name_tiles(spans: list[Span], gap: int = 0, base: int = -1) -> list[Span]:
    """Make spans one picture that have `gap` tokens between them, and call them tiles; of several number `base` shows
    the whole picture."""

    def picture(pair: tuple[int, Span]) -> tuple[int, int]:
        number, span = pair
        return span.row, span.columns[0] - number * (span.count + gap)

    named = []
    for number, (_, group) in enumerate(groupby(enumerate(spans), key=picture)):
        tiles = [replace(span, item=number, part="tile") for _, span in group]
        tiles[base] = replace(tiles[base], part="base" if len(tiles) > 1 else "image")
        named += tiles
    return named


def name_marked_tiles(spans: list[Span], input_ids: Tensor) -> list[Span]:
    """The same where a token before each tells them apart (row 1 column 2, ...): a picture ends with the whole of it,
    so the one before the last span of a row stands before whole views.

    input_ids: int64 [B, L].
    """
    ids = input_ids.tolist()
    marks = [ids[s.row][s.columns[0] - 1] if s.columns[0] else None for s in spans]
    whole = {span.row: mark for span, mark in zip(spans, marks, strict=True)}
    tiled = {span.row for span, mark in zip(spans, marks, strict=True) if mark != whole[span.row]}
    named, item = [], 0
    for span, mark in zip(spans, marks, strict=True):
        ends = mark == whole[span.row]
        part = "image" if span.row not in tiled else "base" if ends else "tile"
        named.append(replace(span, part=part, item=item))
        item += ends
    return named


def as_frames(spans: list[Span]) -> list[list[int]]:
    """Which spans of a prompt become one video: for each, the numbers of its spans, in order.

    The images of a row are its frames, whatever text stands between them. Raises `Unsupported` where they are not all
    of one size, or in tiles.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, span in enumerate(spans):
        groups.setdefault((span.row,) if span.media == "image" else (span.row, number), []).append(number)
    for numbers in groups.values():
        sizes = {spans[i].grid for i in numbers}
        if len(sizes) > 1 or any(spans[i].part != "image" for i in numbers if len(numbers) > 1):
            seen = ", ".join(sorted({" x ".join(map(str, spans[i].grid)) for i in numbers}))
            raise Unsupported(
                f"images='frames' needs images of one size and not in tiles; row {spans[numbers[0]].row} has grids of "
                f"{seen}. Resize the images, or turn tiling off in the processor."
            )
    return list(groups.values())


def join_spans(spans: list[Span]) -> Span:
    """One video of frames that are spans of their own."""
    first = spans[0]
    columns: list[int] = []
    separators: list[Separator] = []
    for span in spans:
        separators += [Separator(c, a + len(columns), b + len(columns)) for c, a, b in span.separators]
        columns += span.columns
    _, h, w = first.grid
    grid = (sum(span.grid[0] for span in spans), h, w)
    return replace(first, columns=tuple(columns), grid=grid, separators=tuple(separators), part="video")


def _span(part: Part, columns: list[int], row: int, media: str, item: int) -> Span:
    t, h, w = part.grid
    tokens: list[int] = []
    separators: list[Separator] = []
    at = 0
    for frame in range(t):
        if part.frame_start:
            separators.append(Separator(columns[at], frame * h * w, (frame + 1) * h * w))
            at += 1
        for _ in range(h):
            tokens += columns[at : at + w]
            at += w
            if part.row_end:
                separators.append(Separator(columns[at], len(tokens) - w, len(tokens)))
                at += 1
    separators += [Separator(column, 0, t * h * w) for column in columns[at:]]
    name = part.name if media == "image" else media
    return Span(row, tuple(tokens), part.grid, media, name, item, tuple(separators))
