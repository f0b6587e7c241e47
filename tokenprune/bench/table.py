"""A comparison as tables for people."""

from __future__ import annotations

from rich.table import Table

from tokenprune.bench.compare import Comparison, SideCost, Spread


def costs(result: Comparison) -> Table:
    """What every side takes: medians with their range, and bytes."""
    table = Table(title=f"{result.workload}, batch {result.batch}, {result.rounds} rounds")
    for name in ("", "visual tokens", "prefill ms", "choice ms", "first token ms", "a token ms", "peak", "KV"):
        _add_column(table, name)
    before = result.outcomes[0].tokens[0] if result.outcomes else 0
    table.add_row("dense", str(before), *_cells(result.dense))
    for one in result.outcomes:
        table.add_row(one.label, f"{one.tokens[1]:.0f}", *_cells(one.pruned))
        if one.ideal is not None:
            table.add_row("  its ideal", f"{one.tokens[1]:.0f}", *_cells(one.ideal))
    return table


def ratios(result: Comparison) -> Table:
    """How the sides compare, round by round."""
    table = Table(title="times faster, times the ideal (net: without the choice), round by round")
    for name in ("", "prefill", "by FLOPs", "ideal", "net", "first token", "its ideal", "a token"):
        _add_column(table, name)
    for one in result.outcomes:
        ideal = ["" if x is None else str(x) for x in (one.over_ideal, one.net_over_ideal, one.first_over_ideal)]
        cells = [str(one.speedup), f"{one.promised:.2f}", *ideal[:2], str(one.first_token), ideal[2], str(one.token)]
        table.add_row(one.label, *cells)
    return table


def _add_column(table: Table, name: str) -> None:
    """Labels stay on one line, and no word of a heading is cut."""
    table.add_column(
        name, justify="right" if name else "left", no_wrap=not name, min_width=max(map(len, name.split()), default=0)
    )


def _cells(cost: SideCost) -> list[str]:
    shown = [_time(cost.times[name]) for name in ("prefill", "selection", "first_token", "token")]
    return [*shown, "?" if cost.peak_bytes is None else _mib(cost.peak_bytes), _mib(cost.kv_bytes)]


def _time(spread: Spread) -> str:
    return f"{spread.median:.1f}" if spread.median else ""


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
