"""The tables of the page about Pages, from its committed results."""

from __future__ import annotations

from math import sqrt
from statistics import mean
from typing import Any

from eval import results
from eval.worlds.compare import average
from eval.worlds.errors import error, seen_and_blind, share
from eval.worlds.pages.world import KEEPS, PAGES
from tokenprune.evaluation.markdown import table

USES = {  # of a model that reads, and the types of questions that stand for each
    "look something up: a value, a price, a cell": ("value", "price", "cell"),
    "find one thing among others: a title, a ticked box, whether a word is there": ("title", "ticked", "word"),
    "count lines or items": ("count",),
    "say where something is": ("where",),
    "transcribe a block": ("transcribe",),
}
NAMED = 3  # methods for one use
MIDDLE = 0.25  # the budget that is told in full


def pages_heldout() -> str:
    """The bundled model that reads, seeing and blind, per question type."""
    data = results.read("pages_heldout.json")
    count, types = data["questions_per_type"], data["types"]
    rows = seen_and_blind(data)
    note = (
        f"{count:,} held-out questions of each type, with standard errors. Blind: the page is replaced by noise. A "
        f"place is right where its box and the word's share half of what they cover together (mean IoU "
        f"{types['where']['mean_box_iou']:.2f}), a transcript where a tenth of its characters or less are wrong (mean "
        f"{100 * types['transcribe']['character_errors']:.1f} %)."
    )
    return table(["type", "right, %", "blind, %", "most frequent answer, %"], rows) + f"\n\n{note}"


def read_cells() -> dict[str, dict[float, dict[str, Any]]]:
    """Cells of the comparison by method and budget."""
    found: dict[str, dict[float, dict[str, Any]]] = {}
    for cell in average(results.read("pages_methods.json")["cells"]):
        found.setdefault(cell["label"], {})[cell["keep"]] = cell
    return found


def pages_comparison() -> str:
    """Every method at every budget, and what the middle one costs on both sides."""
    data = results.read("pages_methods.json")
    count, rows = data["questions_per_type"], []
    for label, cells in sorted(read_cells().items(), key=lambda item: -item[1][MIDDLE]["all"]):
        middle = cells[MIDDLE]
        first = middle["first_token"]
        rows.append(
            [
                label,
                *(share(cells[keep]["types"].values(), count) if keep in cells else "" for keep in KEEPS),
                " / ".join(f"{100 * middle[n] / PAGES.tokens:.0f}" for n in ("average_tokens", "final_tokens")) + " %",
                f"{100 * middle['flops_both_sides']:.0f} %",
                f"{100 * first['of_dense']:.0f} % ({100 * first['low']:.0f} to {100 * first['high']:.0f})",
            ]
        )
    whole = share(data["dense"].values(), count)
    head = ["method", *(f"{100 * keep:.0f} %" for keep in KEEPS)]
    head += [f"{what} at {100 * MIDDLE:.0f} %" for what in ("tokens: average / last layer", "FLOPs", "first token")]
    note = (
        f"Right answers, %, mean over the types, {count} questions of each, with standard errors: two figures that lie "
        "less than two of them apart say nothing about order. FLOPs: vision encoder and language model, of the "
        "unpruned. First token: CPU time from pixels on, of the unpruned model's, by turns; quarters of the pages in "
        "brackets."
    )
    return (
        table(head, [["none (dense)", *[whole] * len(KEEPS), "100 / 100 %", "100 %", "100 %"], *rows]) + f"\n\n{note}"
    )


def pages_types() -> str:
    """The middle budget by type of question."""
    data = results.read("pages_methods.json")
    rows = [["none (dense)", *(f"{100 * right:.0f}" for right in data["dense"].values())]]
    for label, cells in sorted(read_cells().items(), key=lambda item: -item[1][MIDDLE]["all"]):
        rows.append([label, *(f"{100 * right:.0f}" for right in cells[MIDDLE]["types"].values())])
    return table([f"{100 * MIDDLE:.0f} %", *PAGES.types], rows)


def which_method() -> str:
    """For each use the methods that are not two standard errors behind the best at the middle budget, those that cost
    least first."""
    count, rows = results.read("pages_methods.json")["questions_per_type"], []
    cells = {label: own[MIDDLE] for label, own in read_cells().items()}
    for use, types in USES.items():
        right = {label: [cell["types"][kind] for kind in types] for label, cell in cells.items()}
        best = max(right, key=lambda label: mean(right[label]))
        near = [
            label
            for label in right
            if mean(right[best]) - mean(right[label])
            <= 2 * sqrt(error(right[best], count) ** 2 + error(right[label], count) ** 2)
        ]
        near.sort(key=lambda label: (cells[label]["flops_both_sides"], -mean(right[label])))
        named = ", ".join(f"`{label}` ({100 * mean(right[label]):.0f})" for label in near[:NAMED])
        rows.append([use, f"`{best}` ({share(right[best], count)})", named, str(len(near))])
    head = ["to", "best, %", "least FLOPs of those within two errors, %", "methods within two errors"]
    return table(head, rows, ":---")


def pages_claims() -> str:
    """Three claims, and what came of them here."""
    data = results.read("pages_claims.json")
    ranks = [
        [
            f"{100 * row['keep']:.0f} %",
            str(row["methods"]),
            f"{row['correlation']:.2f} (p = {row['p']:.2g})",
            *(
                f"`{one['method']}` (scenes {100 * one['scenes']:.0f}, pages {100 * one['pages']:.0f})"
                for one in row["first"].values()
            ),
        ]
        for row in data["rank"]
    ]
    first = table(["keep", "methods", "rank correlation", "first on scenes", "first on pages"], ranks)
    asks = [
        [
            f"{row['world']}, {100 * row['keep']:.0f} %",
            f"{100 * row['asks']:.1f} ({row['asking']} methods)",
            f"{100 * row['others']:.1f}",
            f"{100 * (row['asks'] - row['others']):+.1f} ± {100 * row['error']:.1f}",
        ]
        for row in data["text_guided"]
    ]
    second = table(["", "reads the question, %", "does not, %", "difference"], asks)
    exact = [
        [
            row["type"],
            f"{100 * row['dense']:.1f} %",
            f"{100 * row['pruned']:.1f} %",
            f"{row['changed']} of {row['questions']}",
            f"{row['lost']} / {row['won']}",
        ]
        for row in data["pixelprune"]
    ]
    third = table(["question", "right, dense", "right, pixelprune", "answers that change", "lost / won"], exact)
    kept = [
        [
            row["kind"],
            "as drawn" if row["clean"] else "noise or JPEG",
            str(row["pages"]),
            f"{100 * row['mean']:.0f} % ({100 * row['low']:.0f} to {100 * row['high']:.0f})",
        ]
        for row in data["kept"]
    ]
    return "\n\n".join([first, second, third, table(["page", "ground", "pages", "kept at tau=0"], kept)])


TABLES = {
    "pages_heldout": pages_heldout,
    "pages_comparison": pages_comparison,
    "pages_types": pages_types,
    "which_method": which_method,
    "pages_claims": pages_claims,
}
