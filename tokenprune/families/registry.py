"""Finds families: every module of this folder, and the entry-point group `tokenprune.families` of other packages."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from transformers import PreTrainedModel

from tokenprune import families
from tokenprune.errors import Unsupported
from tokenprune.families.base import Family
from tokenprune.families.generic import Generic

GROUP = "tokenprune.families"
RETRIEVERS = ("colpali", "colqwen2")  # they answer with an embedding of every token


def _classes() -> list[Any]:
    """Those of other packages, and every one of this folder."""
    found = [
        value
        for module in pkgutil.iter_modules(families.__path__)
        for value in vars(importlib.import_module(f"{families.__name__}.{module.name}")).values()
        if isinstance(value, type) and issubclass(value, Family) and not inspect.isabstract(value)
    ]
    return [*(entry.load() for entry in entry_points(group=GROUP)), *found]


def _conventional(cls: type[Family]) -> Sequence[str]:
    """The model types that a class serves by convention."""
    return cls.by_convention if issubclass(cls, Generic) else ()


@lru_cache(maxsize=1)
def all_families() -> dict[str, Family]:
    """Every known family by name; a family of another package stands before ours of the same name or model type."""
    families_by_name: dict[str, Family] = {}
    for cls in _classes():
        if "place" in vars(cls):
            warnings.warn(f"{cls.name}: Family.place is pool_patches now.", DeprecationWarning, stacklevel=2)
            cls.pool_patches = cls.place
        if vars(cls).get("model_types"):
            families_by_name.setdefault(cls.name, cls())
    return families_by_name


def family_of(model: PreTrainedModel) -> Family:
    """The family that serves this model, checked; raises `Unsupported` where there is none."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    known = all_families().values()
    if not model_type:
        raise Unsupported(f"tokenprune cannot prune an object of type {type(model).__name__}. {_list_families()}")
    if model_type in RETRIEVERS:
        raise _no_family(model_type)
    family = next((f for f in known if f.serves(model)), None)
    if family is None:
        family = next((cls for cls in _classes() if model_type in _conventional(cls)), Generic)(model)
    family.check(model)
    return family


def family_named(name: str) -> Family:
    """The family of that name (`Qwen2.5-VL`) or of that model type (`qwen2_5_vl`); raises `Unsupported` where there is
    none."""
    known = all_families()
    found = known.get(name) or next((f for f in known.values() if name in f.model_types), None)
    if found is None:
        raise _no_family(name)
    return found


def _no_family(model_type: str) -> Unsupported:
    if model_type in RETRIEVERS:
        return Unsupported(
            f"tokenprune cannot prune model type {model_type!r}: it generates nothing, every token is an embedding of "
            "its page. Merge those: tokenprune.merge_pages(embeddings, keep=...)."
        )
    return Unsupported(f"tokenprune cannot prune model type {model_type!r}. {_list_families()}")


def _list_families() -> str:
    types = sorted({model_type for family in all_families().values() for model_type in family.model_types})
    return f"Supported model types: {', '.join(types)}."
