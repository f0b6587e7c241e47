"""Which prompt token a row stands for, as pure code: against lists of columns that are shortened one by one."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenprune.engine.token_state import TokenState
from tokenprune.families.base import Separator, Span


@st.composite
def prompts(draw):
    """Rows of text and spans, some of whose tokens are closed by separators, behind padding: (length, padding of each
    row, spans, and for each row the columns of its text)."""
    rows, spans, texts = [], [], []
    for row in range(draw(st.integers(1, 3))):
        column, text = 0, []
        for _ in range(draw(st.integers(0, 2))):
            before = draw(st.integers(0, 3))
            text += range(column, column + before)
            column += before
            columns, separators = [], []
            for _ in range(draw(st.integers(1, 3))):
                width = draw(st.integers(1, 4))
                first = len(columns)
                columns += range(column, column + width)
                column += width
                if draw(st.booleans()):
                    separators.append((column, first, len(columns)))
                    column += 1
            spans.append((row, columns, separators))
        last = draw(st.integers(1, 3))
        text += range(column, column + last)
        rows.append(column + last)
        texts.append(text)
    length = max(rows)
    pad = [length - n for n in rows]
    spans = [(r, [c + pad[r] for c in cs], [(c + pad[r], a, b) for c, a, b in seps]) for r, cs, seps in spans]
    return length, pad, spans, [[c + pad[r] for c in text] for r, text in enumerate(texts)]


def state_of(length, pad, spans):
    valid = torch.arange(length) >= torch.tensor(pad)[:, None]
    positions = (valid.long().cumsum(1) - 1).clamp(min=0)[None]
    made = [
        Span(row=row, columns=tuple(columns), grid=(1, 1, len(columns)), separators=tuple(Separator(*s) for s in seps))
        for row, columns, seps in spans
    ]
    return TokenState.of_prompt(made, valid, positions, [length - p for p in pad])


def shown(state):
    """For each row of the batch the prompt columns of its rows, in their order, and their positions."""
    columns = [row[ok].tolist() for row, ok in zip(state.column, state.valid, strict=True)]
    positions = [row[ok].tolist() for row, ok in zip(state.positions[0], state.valid, strict=True)]
    return columns, positions


def shorten(spans, texts, chosen):
    """The columns of each row of the batch once only these tokens of each span are left."""
    left = [list(text) for text in texts]
    for (row, columns, separators), own in zip(spans, chosen, strict=True):
        left[row] += [columns[i] for i in own]
        left[row] += [c for c, first, last in separators if any(first <= i < last for i in own)]
    return [sorted(row) for row in left]


def drawn_choice(data, sizes):
    return [sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=n))) if n else [] for n in sizes]


@given(prompt=prompts(), data=st.data(), renumber=st.booleans())
def test_taking_is_shortening_lists(prompt, data, renumber):
    length, pad, spans, texts = prompt
    state = state_of(length, pad, spans)
    carried = {"hidden": torch.arange(length, dtype=torch.float32).expand(len(pad), -1)[..., None]}
    ids = [list(range(len(columns))) for _, columns, _ in spans]
    for _ in range(2):
        picks = drawn_choice(data, [len(own) for own in ids])
        ids = [[own[i] for i in pick] for own, pick in zip(ids, picks, strict=True)]
        state, carried, moved = state.take([torch.tensor(pick, dtype=torch.long) for pick in picks], carried, renumber)
        expected = shorten(spans, texts, ids)
        columns, positions = shown(state)
        assert columns == expected
        assert state.counts == [len(row) for row in expected]
        assert state.width == max(state.counts)
        assert [own.tolist() for own in state.token_ids] == ids
        visual = [
            sorted(c for (r, cs, _), own in zip(spans, ids, strict=True) if r == row for c in map(cs.__getitem__, own))
            for row in range(len(pad))
        ]
        assert [own.tolist() for own in state.kept_columns()] == visual
        assert state.visual_counts() == [len(own) for own in visual]
        for row, kept in enumerate(expected):
            assert carried["hidden"][row, state.valid[row], 0].tolist() == kept  # what is carried follows the rows
            assert positions[row] == (list(range(len(kept))) if renumber else [c - pad[row] for c in kept])
        assert (moved is None) is not renumber
        for (row, cs, _), rows, own in zip(spans, state.token_rows, ids, strict=True):
            assert state.column[row, rows].tolist() == [cs[i] for i in own]


@given(prompt=prompts(), data=st.data())
def test_taking_twice_is_taking_once(prompt, data):
    length, pad, spans, _ = prompt
    first = drawn_choice(data, [len(columns) for _, columns, _ in spans])
    second = drawn_choice(data, [len(own) for own in first])
    whole = state_of(length, pad, spans)
    as_index = lambda picks: [torch.tensor(pick, dtype=torch.long) for pick in picks]  # noqa: E731
    twice, _, _ = whole.take(as_index(first), {}, False)
    twice, _, _ = twice.take(as_index(second), {}, False)
    both = [[own[i] for i in pick] for own, pick in zip(first, second, strict=True)]
    once, _, _ = whole.take(as_index(both), {}, False)
    assert shown(twice) == shown(once)


@given(prompt=prompts(), data=st.data())
def test_what_waited_comes_back_as_it_left(prompt, data):
    length, pad, spans, _ = prompt
    whole = state_of(length, pad, spans)
    picks = drawn_choice(data, [len(columns) for _, columns, _ in spans])
    waiting = torch.zeros(len(pad), length, 1)
    few, carried, _ = whole.take([torch.tensor(p, dtype=torch.long) for p in picks], {"hidden": waiting}, False)
    changed = carried["hidden"] + 1
    back, hidden = few.recall(whole, waiting, changed, length)
    assert shown(back) == shown(whole)
    kept, _ = shown(few)
    for row, columns in enumerate(kept):
        alive = torch.zeros(length)
        alive[columns] = 1
        assert torch.equal(hidden[row, :, 0], alive)


@given(prompt=prompts(), data=st.data())
def test_restoring_puts_rows_where_they_came_from(prompt, data):
    length, pad, spans, texts = prompt
    picks = drawn_choice(data, [len(columns) for _, columns, _ in spans])
    hidden = torch.arange(1.0, length + 1).expand(len(pad), -1)[..., None]
    chosen = [torch.tensor(p, dtype=torch.long) for p in picks]
    few, carried, _ = state_of(length, pad, spans).take(chosen, {"hidden": hidden}, False)
    full = few.restore(carried["hidden"], length)[..., 0]
    for row, columns in enumerate(shorten(spans, texts, picks)):
        expected = torch.zeros(length)
        expected[columns] = hidden[row, columns, 0]
        assert torch.equal(full[row], expected)


@given(prompt=prompts())
def test_text_and_the_last_token(prompt):
    length, pad, spans, texts = prompt
    state = state_of(length, pad, spans)
    assert state.query_rows.tolist() == [length - 1] * len(pad)
    for row, own in enumerate(state.text_rows):
        begins = min((columns[0] for r, columns, _ in spans if r == row), default=length)
        assert own.tolist() == [c for c in texts[row] if c > begins]
