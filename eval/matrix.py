"""Which method runs on which family, from the two registries: `python -m eval.matrix` prints the table."""

from __future__ import annotations

from collections.abc import Iterator

from tokenprune.families.base import Family
from tokenprune.families.registry import all_families
from tokenprune.markdown import table
from tokenprune.methods.base import Method, options_of
from tokenprune.methods.registry import all_methods


def variants() -> Iterator[tuple[str, Method]]:
    """Every method, and every choice of an option that changes which signals it reads."""
    for cls in all_methods().values():
        plain = cls()
        yield cls.name, plain
        for field in options_of(cls):
            for choice in field.metadata["choices"]:
                changed = cls(**{field.name: choice})
                if changed.needs != plain.needs:
                    yield f"{cls.name} {field.name}={choice}", changed


def obstacle(family: Family, method: Method) -> str | None:
    """Why a family cannot run a method; None where it can."""
    for need in method.needs:
        reason = family.lacks(need.signal, need.variant)
        if reason is not None:
            return f"no {need.signal}: {reason}"
    if method.merges_in == "encoder" and not family.projects:
        return "it does not project its features one by one. Use merge_in='projected'."
    return None


def condition(family: Family, method: Method) -> str | None:
    """What a model of the family must have to run a method, where not all have it."""
    keys = [f"{need.signal}:{need.variant}" for need in method.needs]
    return next((family.conditions[key] for key in keys if key in family.conditions), None)


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
            why, given = obstacle(family, method), condition(family, method)
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
