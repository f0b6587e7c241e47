"""The speed tables of a CPU, from the committed result."""

from __future__ import annotations

from statistics import median
from typing import Any

from eval.results import read
from tokenprune.evaluation.markdown import table

SHOWN = ("divprune", "visionzip", "fastvid", "evs", "fastv", "sparsevlm")


def speed() -> str:
    """What some methods save in every cell."""
    data = read("bench_cpu.json")
    rows = []
    for name, cell in data["cells"].items():
        dense = cell["dense"]
        times, where = dense["times"], name.split(" ", 1)[1]
        first = [f"{times[k]['median']:,.0f}" for k in ("prefill", "first_token", "token")]
        rows.append(
            [f"{where}: dense", *first[:1], "", "", "", *first[1:], _mib(dense["peak_bytes"]), _mib(dense["kv_bytes"])]
        )
        for one in cell["outcomes"]:
            if one["label"].split()[0] not in SHOWN:
                continue
            own = one["pruned"]
            ideal = f"{one['ideal']['times']['prefill']['median']:,.0f}" if one["ideal"] else ""
            rows.append(
                [
                    f"`{one['label']}`",
                    f"{own['times']['prefill']['median']:,.0f} ({own['times']['selection']['median']:,.0f})",
                    ideal,
                    f"{one['speedup']['median']:.2f} x",
                    f"{one['promised']:.2f} x",
                    f"{own['times']['first_token']['median']:,.0f}",
                    f"{own['times']['token']['median']:,.0f}",
                    _mib(own["peak_bytes"]),
                    _mib(own["kv_bytes"]),
                ]
            )
    head = ["", "prefill, ms (choosing)", "ideal, ms", "faster", "promised", "first token, ms", "a token, ms"]
    versions = data["versions"]
    note = (
        f"Medians; {versions['device']}, {versions['threads']} threads, float32, torch {versions['torch']}, "
        f"transformers {versions['transformers']}, commit {versions['commit']}."
    )
    return table([*head, "peak, MiB", "KV, MiB"], rows) + f"\n\n{note}"


def bars() -> str:
    """What was asked, and how much of it is met."""
    found = read("bench_cpu.json")["bars"]
    idle = [bar["value"] for bar in found if "without" in bar["name"] and _does_nothing(bar["where"])]
    note = (
        "`uniform` and `random` choose in no time, so what they differ from their ideal by is the noise of this "
        f"machine: {min(idle):.2f} to {max(idle):.2f}. A single method's miss within that says nothing; the medians do."
    )
    return f"{bar_table(found)}\n\n{note}"


def bar_table(found: list[dict[str, Any]]) -> str:
    """Bars of one name in one row."""
    groups: dict[tuple[str, float, bool], list[dict[str, Any]]] = {}
    for bar in found:
        groups.setdefault((bar["name"], bar["limit"], bar["at_most"]), []).append(bar)
    rows = []
    for (name, limit, at_most), own in groups.items():
        values = [bar["value"] for bar in own]
        missed = sorted((bar for bar in own if not bar["met"]), key=lambda b: abs(b["value"] - limit), reverse=True)
        worst = "; ".join(f"{bar['where'].split(' ', 1)[-1]} {bar['value']:.2f}" for bar in missed[:3])
        more = f"; {len(missed) - 3} more" if len(missed) > 3 else ""
        sign = "at most" if at_most else "at least"
        met = f"{len(own) - len(missed)} of {len(own)}"
        spread = f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
        rows.append([name, f"{sign} {limit}", met, spread, worst + more])
    return table(["bar", "limit", "met", "median of medians (range)", "missed most"], rows)


def _does_nothing(where: str) -> bool:
    return any(f" {name} " in where for name in ("uniform", "random"))


def _mib(count: int | None) -> str:
    return "?" if count is None else f"{count / 2**20:,.0f}"


def both_sides(data: dict[str, Any]) -> list[str]:
    """A table for each workload of `eval.bench.encoder`: the first token, pruned before the encoder or the LLM."""
    parts = []
    for shape, cell in data["cells"].items():
        rows = [["dense", str(cell["outcomes"][0]["tokens"][0]), _seconds(cell["dense"]), "", ""]]
        for one in cell["outcomes"]:
            over = one["first_over_ideal"]
            told = [_seconds(one["pruned"]), _spread(one["first_token"], " x"), _spread(over, "") if over else ""]
            rows.append([one["label"], f"{one['tokens'][2]}", *told])
        head = [f"`{shape}`", "visual tokens", "first token, s", "faster than dense", "over ideal"]
        parts.append(table(head, rows))
    return parts


def _seconds(cost: dict[str, Any]) -> str:
    return f"{cost['times']['first_token']['median'] / 1000:.3g}"


def _spread(found: dict[str, float], unit: str) -> str:
    return f"{found['median']:.2f}{unit} ({found['low']:.2f} to {found['high']:.2f})"
