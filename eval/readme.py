"""Writes the generated parts of README.md from the registry and the committed results: `python -m eval.readme`."""

from __future__ import annotations

import re
from pathlib import Path

from eval import results
from eval.matrix import matrix
from eval.scenes.questions import TYPES
from tokenprune.methods.base import options_of
from tokenprune.methods.registry import all_methods

README = Path(__file__).parent.parent / "README.md"


def row(*cells: object) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(str(c) for c in cells)} |"


def table(head: list[str], rows: list[list[object]]) -> str:
    """A Markdown table, numbers to the right."""
    rule = [":---" if i == 0 else "---:" for i in range(len(head))]
    return "\n".join([row(*head), row(*rule), *(row(*cells) for cells in rows)])


def methods() -> str:
    """Every method of the registry."""
    rows = []
    for cls in all_methods().values():
        options = ", ".join(f"`{f.name}={f.default}`" for f in options_of(cls))
        place = "before the LLM" if cls.default_at == 0 else f"before layer {cls.default_at}"
        signals = ", ".join(f"`{need.signal}`" for need in cls().needs) or "none"
        rows.append([f"`{cls.name}`", cls.year or "", cls.paper, cls.kind, place, signals, options])
    return table(["method", "year", "paper", "kind", "stage", "signals", "options and defaults"], rows)


def heldout() -> str:
    """The bundled model, seeing and blind, per question type."""
    data = results.read("scenes_heldout.json")
    rows = [[kind, *(f"{100 * t[n]:.1f}" for n in ("right", "blind", "majority"))] for kind, t in data["types"].items()]
    rows.append(["**all**", *(f"**{100 * data['all'][n]:.1f}**" for n in ("right", "blind", "majority"))])
    position = data["types"]["position"]
    note = (
        f"{data['questions_per_type']} held-out questions of each type. Blind: the picture is replaced by noise. "
        f"Position: median distance {position['median_distance_px']} pixels of 96, mean IoU of 24-pixel boxes "
        f"{position['mean_box_iou']:.2f}."
    )
    return table(["type", "right, %", "blind, %", "most frequent answer, %"], rows) + f"\n\n{note}"


def compared() -> list[dict]:
    """Cells of the comparison; seeds of the random baseline averaged into one."""
    groups: dict[tuple, list[dict]] = {}
    for cell in results.read("scenes_methods.json")["cells"]:
        options = {k: v for k, v in cell["options"].items() if k != "seed"}
        label = " ".join([cell["method"], *(f"{k}={v}" for k, v in options.items())])
        groups.setdefault((label, cell["keep"], cell["positions"]), []).append(cell)
    return [
        {
            "label": label,
            "keep": keep,
            "positions": positions,
            "all": sum(c["all"] for c in cells) / len(cells),
            "types": {k: sum(c["types"][k] for c in cells) / len(cells) for k in TYPES},
            **{k: cells[0][k] for k in ("average_tokens", "final_tokens", "flops")},
        }
        for (label, keep, positions), cells in groups.items()
    ]


def comparison() -> str:
    """Accuracy of every method at every budget, both position policies."""
    data = results.read("scenes_methods.json")
    head = ["method", "keep", "tokens: average / last layer", "prefill FLOPs", "positions", "all", *TYPES]
    dense = data["dense"]
    first = ["none (dense)", "", "144 / 144", "100 %", ""]
    rows = [[*first, *(f"{100 * v:.1f}" for v in (sum(dense.values()) / len(dense), *dense.values()))]]
    for cell in sorted(compared(), key=lambda c: (-c["keep"], c["label"], c["positions"] == "compact")):
        tokens = f"{cell['average_tokens']:.0f} / {cell['final_tokens']:.0f}"
        scores = [f"{100 * v:.1f}" for v in (cell["all"], *cell["types"].values())]
        share = f"{100 * cell['flops']:.0f} %"
        rows.append([cell["label"], f"{100 * cell['keep']:.0f} %", tokens, share, cell["positions"], *scores])
    return table(head, rows)


BLOCKS = {"methods": methods, "matrix": matrix, "heldout": heldout, "comparison": comparison}


def render(text: str) -> str:
    """The README with every generated block brought up to date."""
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name}: generated -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no block {name!r}.")
        text = pattern.sub(lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text)
    return text


if __name__ == "__main__":
    README.write_text(render(README.read_text()))
