"""Finds methods: every module of this folder, and the entry-point group `tokenprune.methods` of other packages."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from importlib.metadata import entry_points

from tokenprune import methods
from tokenprune.errors import BadInput, unknown
from tokenprune.methods.base import Method

GROUP = "tokenprune.methods"


@lru_cache(maxsize=1)
def all_methods() -> dict[str, type[Method]]:
    """Every known method by name, in alphabetical order."""
    found: dict[str, type[Method]] = {}

    def add(cls: type[Method], where: str) -> None:
        if found.setdefault(cls.name, cls) is not cls:
            raise BadInput(f"{where} repeats the method name {cls.name!r}.")

    for module in pkgutil.iter_modules(methods.__path__):
        for value in vars(importlib.import_module(f"{methods.__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Method) and "name" in vars(value):
                add(value, value.__module__)
    for entry in entry_points(group=GROUP):
        where = f"The entry point {entry.name!r} of {GROUP}"
        value = entry.load()
        if not (isinstance(value, type) and issubclass(value, Method)):
            raise BadInput(f"{where} is not a tokenprune method class.")
        add(value, where)
    return dict(sorted(found.items()))


def method_class(name: str) -> type[Method]:
    """The method of that name, or an error that shows the nearest one."""
    known = all_methods()
    if name not in known:
        raise unknown("method", name, known)
    return known[name]
