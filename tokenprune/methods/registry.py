"""Finds methods: every module of this folder, and the entry-point group `tokenprune.methods` of other packages."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from functools import lru_cache
from importlib.metadata import entry_points

from tokenprune import methods
from tokenprune.errors import BadInput, unknown
from tokenprune.methods.base import Method

GROUP = "tokenprune.methods"
ELSEWHERE = {  # publications that are here, but not as a method
    "GAP": (
        "2506.21873",
        "the position policy `original` of `prune(positions=...)`, the default: survivors keep their position ids",
    )
}


@lru_cache(maxsize=1)
def all_methods() -> dict[str, type[Method]]:
    """Every known method by name, in alphabetical order. Stages that belong to one of them are not among them."""
    return {name: cls for name, cls in _load_all().items() if cls.stage_of is None}


@lru_cache(maxsize=1)
def all_classes() -> dict[str, type[Method]]:
    """Everything that has a method's name, in alphabetical order: methods, and the stages that belong to one."""
    return _load_all()


def _load_all() -> dict[str, type[Method]]:
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
    """The method, or the stage of one, of that name, or an error that shows the nearest one."""
    known = all_classes()
    if name not in known:
        raise unknown("method", name, all_methods())
    return known[name]


def find(words: str) -> list[type[Method]]:
    """Methods by name, by what their paper calls them or by its arXiv number (a version, or an address, will do too).

    Methods whose name it is come first, then those that have it in their names. Empty where there is none.
    """
    known = all_methods().values()
    numbers = _numbers(words)
    if numbers:
        return [cls for cls in known if numbers & _numbers(cls.paper)]
    key = _letters(words)
    names = {cls: [_letters(name) for name in _names(cls)] for cls in known}
    alike = [cls for cls in known if key and any(key in name for name in names[cls])]
    return sorted(alike, key=lambda cls: names[cls].index(key) if key in names[cls] else len(names[cls]))


def elsewhere(words: str) -> list[str]:
    """Where publications of that name or arXiv number are that no method stands for, a sentence each."""
    return [
        f"{name} (arXiv {number}) is {where}."
        for name, (number, where) in ELSEWHERE.items()
        if number in _numbers(words) or _letters(name) == _letters(words)
    ]


def _names(cls: type[Method]) -> list[str]:
    """What a method and its paper are called: its own names, and the heads of its docstrings."""
    texts = (cls.__doc__ or "", sys.modules[cls.__module__].__doc__ or "")
    return [cls.name, cls.__name__, *(re.split(r"[:(.\n]", text, maxsplit=1)[0] for text in texts)]


def _numbers(words: str) -> set[str]:
    """The arXiv numbers in a text, without versions."""
    return set(re.findall(r"(?<!\d)\d{4}\.\d{4,5}(?!\d)", words))


def _letters(words: str) -> str:
    return "".join(c for c in words.lower() if c.isalnum())
