"""Which method runs on which family, from the two registries: `python -m eval.matrix` prints the table."""

from __future__ import annotations

from tokenprune import supports
from tokenprune.catalogue.reach import variants
from tokenprune.engine.support import condition
from tokenprune.evaluation.markdown import table
from tokenprune.families.registry import all_families


def matrix() -> str:
    """The table as Markdown: methods that run on the same families share a row; reasons are numbered notes."""
    notes: list[str] = []

    def noted(text: str) -> int:
        if text not in notes:
            notes.append(text)
        return notes.index(text) + 1

    families = sorted(all_families().values(), key=lambda f: f.name.lower())
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, method in variants():
        cells = []
        for family in families:
            why, given = supports(family, method), condition(family, method)
            cells.append(f"no ({noted(why)})" if why else f"yes ({noted(given)})" if given else "yes")
        rows.setdefault(tuple(cells), []).append(f"`{name}`")
    parts = [
        table(
            ["methods", *(family.name for family in families)],
            [[", ".join(names), *cells] for cells, names in rows.items()],
            ":---:",
        ),
        "\n".join(f"({i}) {note}  " for i, note in enumerate(notes, 1)),
        table(
            ["family", "model types", "media"],
            [[f.name, ", ".join(f"`{t}`" for t in f.model_types), ", ".join(f.media)] for f in families],
            ":---",
        ),
    ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(matrix())
