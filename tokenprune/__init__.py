"""tokenprune: the same answers from a fraction of the visual tokens.

Names are loaded when they are first used, so that importing the package costs nothing: those listed here, and the class
of every method in `methods/`. Type checkers look into `__init__.pyi`, which `make readme` writes.
"""

import importlib

from tokenprune import methods, moved
from tokenprune.version import VERSION

__version__ = VERSION
moved.find_moved()
_HOMES = {
    "BadInput": ".errors",
    "Check": ".checking.check",
    "Decode": ".methods.place",
    "Layer": ".methods.place",
    "MissingSignal": ".errors",
    "Pixels": ".methods.place",
    "Plan": ".plan",
    "Recipe": ".recipes",
    "Report": ".engine.report",
    "Run": ".engine.run",
    "Selection": ".core.selection",
    "Stage": ".methods.stage",
    "Stream": ".engine.stream",
    "TokenpruneError": ".errors",
    "Unsupported": ".errors",
    "Vision": ".methods.place",
    "check": ".checking.check",
    "load_recipe": ".recipes",
    "load_video": ".media.video",
    "merge_pages": ".retrieval",
    "prune": ".api",
    "search_layers": ".search",
    "select": ".api",
    "stream": ".api",
    "supports": ".plan",
}


def __getattr__(name: str) -> object:
    if name == "__all__":
        return sorted({*_HOMES, *methods.classes()})
    home = _HOMES.get(name) or methods.classes().get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home, __name__), name)


def __dir__() -> list[str]:
    return __getattr__("__all__")
