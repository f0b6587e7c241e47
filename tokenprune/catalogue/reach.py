"""Which families run which methods, from the two registries."""

from __future__ import annotations

from collections.abc import Iterator

from tokenprune.engine.support import condition
from tokenprune.families.registry import all_families
from tokenprune.methods.base import Method, options_of
from tokenprune.methods.registry import all_methods
from tokenprune.plan import supports


def variants() -> Iterator[tuple[str, Method]]:
    """Every method, and every choice of an option that changes which signals it reads."""
    for cls in all_methods().values():
        yield from variants_of(cls)


def variants_of(method: type[Method]) -> Iterator[tuple[str, Method]]:
    """A method, and its choices of an option that change which signals it reads, with their names."""
    plain = method()
    yield method.name, plain
    for field in options_of(method):
        for choice in field.metadata["choices"]:
            changed = method(**{field.name: choice})
            if changed.needs != plain.needs:
                yield f"{method.name} {field.name}={choice}", changed


def reach(method: type[Method]) -> list[str]:
    """Which families run it as it is, and what keeps the others from it."""
    plain = method()
    served: list[str] = []
    notes: dict[str, list[str]] = {}
    for family in sorted(all_families().values(), key=lambda family: family.name.lower()):
        why, given = supports(family, plain), condition(family, plain)
        ways = [name for name, way in variants_of(method) if supports(family, way) is None]
        if why is None:
            served.append(family.name)
        if why is not None:
            notes.setdefault(why + (f" So: {', '.join(ways)}." if ways else ""), []).append(family.name)
        elif given is not None:
            notes.setdefault(given, []).append(family.name)
    lines = [f"{len(served)} of {len(all_families())}: {', '.join(served)}"]
    return lines + [f"{', '.join(names)}: {why}" for why, names in notes.items()]
