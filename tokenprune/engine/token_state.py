"""Which prompt token each row of the sequence stands for, between two stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from tokenprune.core.positions import compact, runs
from tokenprune.core.selection import to_device
from tokenprune.engine.rows import Rows
from tokenprune.families.base import Span


@dataclass(frozen=True, repr=False, eq=False)
class TokenState:
    """What the rows of the sequence are between two stages; never changed in place.

    spans: the images and videos of the prompt.
    rows: tensors [B, K, ...] that follow the rows, by name:
        column: int64 [B, K], the prompt column of each row;
        valid: bool [B, K], False for padding;
        positions: int64 [B, K, axes], what rotary embedding sees;
        native: int64 [B, K], the row of the text model's own cos and sin.
    counts: valid rows of each row of the batch.
    token_rows: for each span the int64 rows it still occupies, ascending.
    token_ids: for each span which of its tokens those are.
    separator_rows, separator_ids: the same for its separators.
    ends: int64 [B], the first column after the prompt in each row of the batch; None: all is prompt.
    shortened: whether a row has gone.
    computed: whether the text model computed cos and sin for these very rows.
    renumbered: whether the positions are others than those that the text model knows.
    """

    spans: Sequence[Span]
    rows: Rows
    counts: list[int]
    token_rows: list[Tensor]
    token_ids: list[Tensor]
    separator_rows: list[Tensor]
    separator_ids: list[Tensor]
    ends: Tensor | None = None
    shortened: bool = False
    computed: bool = True
    renumbered: bool = False

    @classmethod
    def of_prompt(
        cls,
        spans: Sequence[Span],
        valid: Tensor,
        positions: Tensor,
        counts: list[int],
        ends: Tensor | None = None,
        hides_media: bool = False,
    ) -> TokenState:
        """All rows of a prompt. valid: bool [B, L]; positions: int64 [axes, B, L]. hides_media: whether `valid` hides
        visual tokens or separators: those are not there to choose from, as after an earlier stage."""
        device = valid.device
        columns = torch.arange(valid.shape[1], device=device).expand(len(valid), -1)

        def rows_and_ids(span: Span, columns_of: Sequence[int]) -> tuple[Tensor, Tensor]:
            rows, ids = to_device(columns_of, device).long(), torch.arange(len(columns_of), device=device)
            seen = valid[span.row, rows] if hides_media else None
            return (rows, ids) if seen is None else (rows[seen], ids[seen])

        tokens = [rows_and_ids(span, span.columns) for span in spans]
        separators = [rows_and_ids(span, [s.column for s in span.separators]) for span in spans]
        return cls(
            spans=spans,
            rows=Rows({"column": columns, "valid": valid, "positions": positions.movedim(0, -1), "native": columns}),
            counts=counts,
            token_rows=[rows for rows, _ in tokens],
            token_ids=[ids for _, ids in tokens],
            separator_rows=[rows for rows, _ in separators],
            separator_ids=[ids for _, ids in separators],
            ends=ends,
        )

    def __repr__(self) -> str:
        visual = [len(rows) for rows in self.token_rows]
        renumbered = ", renumbered" if self.renumbered else ""
        return f"TokenState({self.width} rows, {self.counts} of them tokens, spans hold {visual}{renumbered})"

    @property
    def column(self) -> Tensor:
        """int64 [B, K]: the prompt column of each row."""
        return self.rows["column"]

    @property
    def valid(self) -> Tensor:
        """bool [B, K]: False for padding."""
        return self.rows["valid"]

    @property
    def positions(self) -> Tensor:
        """int64 [axes, B, K]."""
        return self.rows["positions"].movedim(-1, 0)

    @property
    def batch(self) -> int:
        """B."""
        return self.valid.shape[0]

    @property
    def width(self) -> int:
        """K."""
        return self.valid.shape[1]

    @cached_property
    def query_rows(self) -> Tensor:
        """int64 [B]: the row of the last prompt token (before an answer or drafts, and before right padding)."""
        usable = self.valid if self.ends is None else self.valid & (self.column < self.ends[:, None])
        return (usable * torch.arange(1, self.width + 1, device=usable.device)).argmax(-1)

    @cached_property
    def text_rows(self) -> list[Tensor]:
        """For each row of the batch int64 [m]: its text after its first image, up to the last prompt token."""
        length = 1 + max((c for s in self.spans for c in (*s.columns, *(e.column for e in s.separators))), default=-1)
        text = torch.ones(self.batch, length + 1, dtype=torch.bool)  # neither visual token nor separator
        for span in self.spans:
            text[span.row, [*span.columns, *(s.column for s in span.separators)]] = False
        after = text & (~text).long().cumsum(1).bool()  # the last column stands for all that follow it
        text = after.to(self.column.device, non_blocking=True).gather(1, self.column.clamp(max=length)) & self.valid
        text &= torch.arange(self.width, device=text.device) <= self.query_rows[:, None]
        return [row.nonzero().flatten() for row in text]

    def text_after(self, row: int, column: int) -> Tensor:
        """int64 [m]: those of `text_rows` of a row of the batch that come after a prompt column."""
        rows = self.text_rows[row]
        return rows[self.column[row, rows] > column]

    def visual_counts(self) -> list[int]:
        """Visual tokens still there, for each row of the batch."""
        counts = [0] * self.batch
        for span, rows in zip(self.spans, self.token_rows, strict=True):
            counts[span.row] += len(rows)
        return counts

    def visual_rows(self) -> Tensor:
        """bool [B, K]: which rows are visual tokens."""
        found = torch.zeros_like(self.valid)
        for span, rows in zip(self.spans, self.token_rows, strict=True):
            found[span.row, rows] = True
        return found

    def kept_columns(self) -> list[Tensor]:
        """For each row of the batch the ascending prompt columns of the visual tokens still there."""
        found: list[list[Tensor]] = [[] for _ in range(self.batch)]
        for span, rows in zip(self.spans, self.token_rows, strict=True):
            found[span.row].append(self.column[span.row, rows])
        empty = self.column.new_empty(0)
        return [torch.cat(parts).sort().values if parts else empty for parts in found]

    def take(
        self, chosen: list[Tensor], carried: dict[str, Tensor], renumber: bool
    ) -> tuple[TokenState, dict[str, Tensor], Tensor | None]:
        """The state in which of every span only `chosen` is left, what is carried along shortened likewise, and by how
        much the ends of the rows of the batch moved down, int64 [B] (None without `renumber`).

        chosen: for each span int64 [k], ascending, which of the tokens that are left stay. A separator goes with the
        last token that it closes. carried: tensors [B, K, ...], each on its own device. renumber: give positions as if
        the prompt had been short. Survivors go to the right in their order; a row of the batch with fewer gets
        removed tokens on the left, marked as padding.
        """
        keep, counts = self.valid.clone(), list(self.counts)
        token_rows = [rows[own] for rows, own in zip(self.token_rows, chosen, strict=True)]
        token_ids = [ids[own] for ids, own in zip(self.token_ids, chosen, strict=True)]
        separator_rows, separator_ids = list(self.separator_rows), list(self.separator_ids)
        for i, span in enumerate(self.spans):
            alive = self._alive_separators(i, token_ids[i])
            if alive is not None:
                separator_rows[i], separator_ids[i] = separator_rows[i][alive], separator_ids[i][alive]
            for before, after in ((self.token_rows[i], token_rows[i]), (self.separator_rows[i], separator_rows[i])):
                keep[span.row, before] = False
                keep[span.row, after] = True
                counts[span.row] -= len(before) - len(after)
        rows, moved = self.rows.replace(valid=keep), None
        if renumber:
            positions, moved = self._renumber(keep)
            rows = rows.replace(positions=positions.movedim(0, -1))
        rows, carried = rows.take(keep, max(counts), carried)
        moved_to = keep.long().cumsum(1)
        moved_to = moved_to - moved_to[:, -1:] + max(counts) - 1
        state = replace(
            self,
            rows=rows,
            counts=counts,
            token_rows=[moved_to[span.row, after] for span, after in zip(self.spans, token_rows, strict=True)],
            token_ids=token_ids,
            separator_rows=[moved_to[span.row, after] for span, after in zip(self.spans, separator_rows, strict=True)],
            separator_ids=separator_ids,
            shortened=True,
            computed=False,
            renumbered=self.renumbered or renumber,
        )
        return state, carried, moved

    def _alive_separators(self, i: int, tokens: Tensor) -> Tensor | None:
        """bool [m]: the separators of span i that still close something, once only `tokens` are left of it; None
        without any."""
        ids = self.separator_ids[i]
        if not len(ids):
            return None
        limits = to_device([s[1:] for s in self.spans[i].separators], ids.device)[ids]
        first, last = limits[:, :1], limits[:, 1:]
        return ((tokens >= first) & (tokens < last)).any(-1)

    def _renumber(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Positions int64 [axes, B, K] without the gaps that rows outside `keep` leave, and how far the ends move."""
        positions, rank = self.positions.clone(), self.valid.long().cumsum(1)
        moved = positions.new_zeros(self.batch)
        for row in range(self.batch):
            stretches: list[Tensor] = []
            for span, tokens, separators in zip(self.spans, self.token_rows, self.separator_rows, strict=True):
                if span.row == row:
                    own = torch.cat([tokens, separators]).sort().values
                    stretches += runs(own, rank[row, own])  # hidden columns in between do not part a span
            if stretches:
                stretches.sort(key=lambda s: int(s[0]))
                positions[:, row], moved[row] = compact(self.positions[:, row], keep[row], stretches)
        return positions, moved

    def lower(self, change: Tensor) -> TokenState:
        """The same rows at positions that are lower by `change`, int64 [B]."""
        rows = self.rows.replace(positions=self.rows["positions"] - change[:, None, None])
        return replace(self, rows=rows, computed=False, renumbered=True)

    def hand_over(self) -> TokenState:
        """The same rows, once the text model itself computes cos and sin for them."""
        native = torch.arange(self.width, device=self.valid.device).expand(self.batch, -1)
        return replace(self, rows=self.rows.replace(native=native), computed=True, renumbered=False)

    def recall(self, then: TokenState, waiting: Tensor, hidden: Tensor, length: int) -> tuple[TokenState, Tensor]:
        """Bring back the rows of an earlier state, of which this one is a part: the state, and hidden states in which
        rows that never left are as they are now (`hidden` [B, K, d]) and the others as they waited ([B, K', d]).
        length: columns of the whole prompt."""
        moved_to = torch.full((self.batch, length), -1, device=hidden.device)
        own = torch.arange(then.width, device=hidden.device).expand(self.batch, -1)
        moved_to = moved_to.scatter(1, then.column, own)
        target = moved_to.gather(1, self.column)
        batch, rows = (self.valid & (target >= 0)).nonzero(as_tuple=True)
        waiting = waiting.clone()
        waiting[batch, target[batch, rows]] = hidden[batch, rows]
        # The text model may have computed cos and sin for the shorter rows alone.
        return replace(then, computed=False, renumbered=True), waiting

    def restore(self, hidden: Tensor, length: int) -> Tensor:
        """Spread rows [B, K, d] over the prompt's length [B, L, d]; removed tokens get zeros."""
        if not self.shortened:
            return hidden
        column, valid = self.column.to(hidden.device), self.valid.to(hidden.device)
        full = hidden.new_zeros(hidden.shape[0], length, hidden.shape[-1])
        return full.scatter(1, column[..., None].expand_as(hidden), hidden.masked_fill(~valid[..., None], 0))
