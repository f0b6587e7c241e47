"""The tables of a GPU, from the files in `eval/results/gpu/`."""

from __future__ import annotations

from typing import Any

from eval.bench.page import bar_table, both_sides, table
from eval.results import read


def gpu_laws() -> str:
    """The oracle on the device: how far pruned logits are from the masked model's, by precision."""
    data = read("gpu/laws.json")
    rows = []
    for precision, limit in data["limits"].items():
        own = [cell for name, cell in data["cells"].items() if name.endswith(precision)]
        good = sum(not cell["problems"] and cell["error"] <= limit for cell in own)
        rows.append([precision, f"{good} of {len(own)}", f"{data['worst'][precision]:.2g}", f"{limit:g}"])
    head = ["precision", "cells that hold", "largest difference of logits", "limit"]
    return f"{table(head, rows)}\n\n{_origin(data)}"


def gpu_decoding() -> str:
    """`generate` with each kind of cache: whether its logits are those of the reference, or why it was refused."""
    data = read("gpu/generate.json")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, outcome in data["outcomes"].items():
        (_, precision, method), way = name.split(": ")[0].split(), name.split(": ")[1]
        groups.setdefault((way, "unpruned" if method == "dense" else f"pruned, {precision}"), []).append(outcome)
    rows = []
    for (way, who), own in groups.items():
        good = [outcome for outcome in own if outcome["good"]]
        worst = max((outcome["relative_difference"] for outcome in good), default=None)
        refused = {outcome["error"].partition(". ")[0] for outcome in own if not outcome["good"]}
        same = sum(outcome["same_tokens"] for outcome in good)
        told = [f"{len(good)} of {len(own)}", same if good else "", f"{worst:.2g}" if good else ""]
        rows.append([way, who, *told, "; ".join(sorted(refused))])
    head = ["way", "", "good", "same tokens", "largest difference, of the logits' range", "refused with"]
    return f"{table(head, rows)}\n\n{_origin(data)}"


def gpu_kernels() -> str:
    """Each kernel against its PyTorch reference."""
    data, tests = read("gpu/timing.json"), read("gpu/kernels.json")
    rows = []
    for name, one in data["kernels"].items():
        if "speedup" not in one:
            continue
        low, high = (one["speedup"][k] for k in ("low", "high"))
        times = [f"{one[side]['median']:.3g}" for side in ("reference", "triton")]
        rows.append([f"`{name}`", *times, f"{one['speedup']['median']:.2f} x", f"{low:.2f} to {high:.2f}"])
    counts = ", ".join(f"{count} {what}" for what, count in tests["counts"].items())
    note = f"{_origin(data)} The kernels' tests on the device, at commit {tests['versions']['commit']}: {counts}."
    return f"{table(['operation', 'PyTorch, ms', 'Triton, ms', 'faster', 'range'], rows)}\n\n{note}"


def gpu_cells() -> str:
    """Prefill, first token and each token of the measured workloads, against dense."""
    data = read("gpu/cells.json")
    rows = []
    for name, cell in data["cells"].items():
        rows.append([f"{name}: dense", f"{cell['dense']['times']['prefill']['median']:.1f}", *[""] * 5])
        for one in cell["outcomes"]:
            times = one["pruned"]["times"]
            ideal = f"{one['ideal']['times']['prefill']['median']:.1f}" if one["ideal"] else ""
            own = f"{times['prefill']['median']:.1f} ({times['selection']['median']:.1f})"
            ratios = [f"{one[k]['median']:.2f} x" for k in ("speedup", "first_token", "token")]
            rows.append([f"`{one['label']}`", own, ideal, f"{one['promised']:.2f} x", *ratios])
    head = ["", "prefill, ms (choosing)", "ideal, ms", "promised", "prefill", "first token", "each token"]
    return f"{table(head, rows)}\n\nMedians; speed-ups over dense, so below 1 is slower. {_origin(data)}"


def gpu_encoder() -> str:
    """Both sides of whole Qwen models pruned, and what choosing takes."""
    data = read("gpu/encoder.json")
    chose = data["choosing"]
    shares = ", ".join(f"{100 * row['share_of_encoder']:.1f} % with {row['method']}" for row in chose["rows"])
    note = (
        f"Medians of {next(iter(data['cells'].values()))['rounds']} rounds, with their range. PixelPrune's choice on "
        f"{chose['patches']:,} patches takes, of the time of Qwen3-VL-2B's dense encoder, {shares}. "
        f"{sum(bar['met'] for bar in data['bars'])} of {len(data['bars'])} bars met. {_origin(data)}"
    )
    return "\n\n".join([*both_sides(data), note])


def gpu_bars() -> str:
    """What was asked of the device, and how much of it is met."""
    cells, kernels = (read(f"gpu/{name}.json")["bars"] for name in ("cells", "timing"))
    met, missed = (sum(bar["met"] == good for bar in cells) for good in (True, False))
    first = f"Whole passes: {met} of {len(cells)} bars met, {missed} missed.\n\n{bar_table(cells)}"
    return f"{first}\n\nKernels: {sum(b['met'] for b in kernels)} of {len(kernels)} met.\n\n{bar_table(kernels)}"


def _origin(data: dict[str, Any]) -> str:
    own = data["versions"]
    build = f"torch {own.get('torch_build', own['torch'])}, Triton {own['triton']}, transformers {own['transformers']}"
    return f"One {own['device']}, {build}, commit {own['commit']}."
