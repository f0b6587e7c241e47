"""YAML files that come with the package: found by name, or by a path, and read with clear errors."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from tokenprune.errors import BadInput, unknown
from tokenprune.recipes import yaml_text

ENDINGS = (".yaml", ".yml")
T = TypeVar("T")


@dataclass(frozen=True)
class Shelf:
    """A folder of `configs`. kind: what a file is, in words; holds: the keys it must have, in words; hint: where to
    look for names."""

    kind: str
    holds: str
    hint: str
    folder: str = ""

    def place(self) -> Any:
        """Where the files are: beside the installed package, or in the repository."""
        installed = files("tokenprune") / "configs"
        return (installed if installed.is_dir() else Path(__file__).parents[2] / "configs") / self.folder

    def names(self) -> list[str]:
        """Names of all files, in alphabetical order."""
        return sorted(f.name.rpartition(".")[0] for f in self.place().iterdir() if f.name.endswith(ENDINGS))

    def load(self, name: str | Path, build: Callable[[dict[str, Any], str], T]) -> T:
        """What `build` makes of a file's mapping and its title, or `BadInput` that says what is wrong and where."""
        text = str(name)
        if text.endswith(ENDINGS):
            path = Path(text)
            if not os.path.exists(path):  # Path.exists() raises for names that no file can have
                raise BadInput(f"There is no {self.kind} file {text}. {self.hint}")
        elif text in self.names():
            path = self.place() / f"{text}.yaml"
        else:
            raise unknown(self.kind, text, self.names())
        try:
            data = yaml_text.read(path)
            if data is None:
                raise BadInput(f"it is empty. Give {self.holds}.")
            if not isinstance(data, dict):
                raise BadInput(f"it is no mapping with {self.holds}.")
            return build(data, path.stem)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(_quote(part) for part in first["loc"])
            raise BadInput(f"The {self.kind} {text} is wrong at {where}: {first['msg']}.") from error
        except BadInput as error:
            raise BadInput(f"The {self.kind} {text} is wrong: {_cut(str(error), 1000)}") from error


def _quote(part: str | int) -> str:
    """A name within a file, as one short word that a terminal can show."""
    text = str(part)
    return _cut(text if text.isprintable() else repr(text), 60)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}..."
