"""Published operating points as data: a YAML file names the stages, their budgets and the figure it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tokenprune.errors import BadInput, unknown
from tokenprune.methods.base import Method, make_method
from tokenprune.methods.registry import all_classes, all_methods, method_class
from tokenprune.methods.stage import Stage
from tokenprune.recipes.shelf import ENDINGS, Shelf

SHELF = Shelf("recipe", "model, positions and stages", "`tokenprune list --recipes` shows the names of all recipes.")


class StageSpec(BaseModel):
    """One stage: where, which method, and the method's options."""

    model_config = ConfigDict(extra="allow")

    at: Annotated[int, Field(ge=0, strict=True)] | Literal["decode", "pixels"] | dict[Literal["vision"], int]
    method: str
    scope: str = ""
    start: int | None = Field(default=None, alias="from", strict=True)

    def to_stage(self) -> Stage:
        """The stage; raises `BadInput` for unknown methods and options and for values out of range."""
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in (self.model_extra or {}).items()}
        return Stage(self.at, make_method(method_class(self.method), options), self.scope, self.start)


class Published(BaseModel):
    """The figure that a recipe belongs to. source: paper and table. Everything else is figures by name."""

    model_config = ConfigDict(extra="allow")

    source: str


class Recipe(BaseModel):
    """Stages, position policy and the published figure. model: the family and size that the figure was measured on."""

    model_config = ConfigDict(extra="forbid")

    model: str
    positions: Literal["original", "compact"] = "original"
    stages: list[StageSpec] = Field(min_length=1)
    published: Published | None = None
    name: str = ""

    def to_stages(self) -> list[Stage]:
        """The stages, in order of their layers."""
        return sorted((spec.to_stage() for spec in self.stages), key=lambda s: s.place.order)


def recipe_names() -> list[str]:
    """Names of all recipes that come with the package, in alphabetical order."""
    return SHELF.names()


def find_named(name: str | Path, options: dict[str, Any]) -> Method | Recipe:
    """What a name stands for: a method, built with these options, or a recipe (its name or file), which takes none.

    Raises `BadInput` for an unknown name, with the nearest one.
    """
    text = str(name)
    if text in all_classes():
        return make_method(method_class(text), options)
    if not isinstance(name, Path) and not text.endswith(ENDINGS) and text not in recipe_names():
        raise unknown("method or recipe", text, all_methods(), also=recipe_names())
    if options:
        raise BadInput(f"{', '.join(options)} cannot be changed beside a recipe. Edit a copy of its file.")
    return load_recipe(name)


def load_recipe(name: str | Path) -> Recipe:
    """A recipe by its name or its file, checked to the last option."""
    return SHELF.load(name, _check)


def _check(data: dict[str, Any], title: str) -> Recipe:
    recipe = Recipe.model_validate(data | {"name": title})
    recipe.to_stages()
    return recipe
