"""Modules that have moved: their old names go on for one release, and say where they are now."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import cast

MOVED = {
    "tokenprune.frames": "tokenprune.media.qwen",
    "tokenprune.html": "tokenprune.explain.html",
    "tokenprune.images": "tokenprune.media.pictures",
    "tokenprune.markdown": "tokenprune.evaluation.markdown",
    "tokenprune.overlay": "tokenprune.explain.overlay",
    "tokenprune.shelf": "tokenprune.recipes.shelf",
    "tokenprune.support": "tokenprune.engine.support",
    "tokenprune.video": "tokenprune.media.video",
    "tokenprune.yaml_text": "tokenprune.recipes.yaml_text",
}


class MovedFinder(MetaPathFinder, Loader):
    """Finds the modules of `MOVED` by their old names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Of a module that has moved; None for others."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module at its new place."""
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} goes in the next release. Import {new}.", DeprecationWarning, stacklevel=2)
        return importlib.import_module(new)

    def exec_module(self, module: ModuleType) -> None:
        """It is loaded already, and stays the module that it is."""
        module.__spec__ = spec_from_loader(module.__name__, cast(Loader, module.__loader__))


def find_moved() -> None:
    """Let the old names be found."""
    sys.meta_path.append(MovedFinder())
