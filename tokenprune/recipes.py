"""Published operating points as data: a YAML file names the stages, their budgets and the figure it belongs to."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenprune.errors import BadInput, unknown
from tokenprune.methods.base import Method, make_method
from tokenprune.methods.registry import all_methods, method_class
from tokenprune.methods.stage import DECODE, Stage

ENDINGS = (".yaml", ".yml")


class StageSpec(BaseModel):
    """One stage: where, which method, and the method's options."""

    model_config = ConfigDict(extra="allow")

    at: Annotated[int, Field(ge=0)] | Literal["decode"]
    method: str
    scope: str = ""
    start: int | None = Field(default=None, alias="from")

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
        return sorted((spec.to_stage() for spec in self.stages), key=lambda s: (s.at == DECODE, s.start or s.at))


def folder() -> Any:
    """Where the recipes are: beside the installed package, or in the repository."""
    installed = files("tokenprune") / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def recipe_names() -> list[str]:
    """Names of all recipes that come with the package, in alphabetical order."""
    return sorted(f.name.rpartition(".")[0] for f in folder().iterdir() if f.name.endswith(ENDINGS))


def named(name: str | Path, options: dict[str, Any]) -> Method | Recipe:
    """What a name stands for: a method, built with these options, or a recipe (its name or file), which takes none.

    Raises `BadInput` for an unknown name, with the nearest one.
    """
    text = str(name)
    if text in all_methods():
        return make_method(method_class(text), options)
    if not isinstance(name, Path) and not text.endswith(ENDINGS) and text not in recipe_names():
        raise unknown("method or recipe", text, all_methods(), also=recipe_names())
    if options:
        raise BadInput(f"{', '.join(options)} cannot be changed beside a recipe. Edit a copy of its file.")
    return load_recipe(name)


def load_recipe(name: str | Path) -> Recipe:
    """A recipe by its name or its file, checked to the last option."""
    text = str(name)
    if text.endswith(ENDINGS):
        path = Path(text)
        if not path.is_file():
            raise BadInput(
                f"There is no recipe file {text}. `tokenprune list --recipes` shows the names of all recipes."
            )
        content, title = path.read_text(), path.stem
    elif text in recipe_names():
        content, title = (folder() / f"{text}.yaml").read_text(), text
    else:
        raise unknown("recipe", text, recipe_names())
    try:
        data = yaml.safe_load(content)
        if not isinstance(data, dict):
            raise BadInput(f"The recipe {text} is no mapping with model, positions and stages.")
        recipe = Recipe(**data | {"name": title})
        recipe.to_stages()
    except yaml.YAMLError as error:
        raise BadInput(f"The recipe {text} is no valid YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"The recipe {text} is wrong at {where}: {first['msg']}.") from error
    except BadInput as error:
        raise BadInput(f"The recipe {text} is wrong: {error}") from error
    return recipe
