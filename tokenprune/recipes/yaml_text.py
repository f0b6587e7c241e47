"""Small YAML files that people write: read at once or refused, whatever is in them.

Only what such a file needs is understood: mappings, lists, texts, numbers, true, false, null. No anchors, tags, dates
or merged keys, no key twice, and limits on the size of everything.
"""

from __future__ import annotations

import math
import re
import stat
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.error import MarkedYAMLError
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode
from yaml.reader import ReaderError

from tokenprune.errors import BadInput

LARGEST = 64 * 1024  # bytes of a file
DEEPEST = 16  # mappings and lists within each other
MOST = 2000  # mappings, lists, names and values
LONGEST = 40  # characters of a number
UNREAD = {f"tag:yaml.org,2002:{kind}" for kind in ("merge", "timestamp", "value")}


def read(path: Path) -> Any:
    """What a file says; raises `BadInput` for one that cannot be read, naming what is wrong, not the file."""
    return parse(_text(_bytes(path)))


def parse(text: str) -> Any:
    """What a YAML text says; None where it says nothing. Raises `BadInput`."""
    try:
        return yaml.load(text, _Loader)
    except ConstructorError as error:
        raise BadInput(f"{_place(error)}: {error.problem}.") from error
    except MarkedYAMLError as error:
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise BadInput(f"it is no valid YAML, {_place(error)}: {problem}.") from error
    except ReaderError as error:
        raise BadInput(f"it is no valid YAML: U+{error.character:04X} at {error.position} is no text.") from error


def _place(error: MarkedYAMLError) -> str:
    return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"


def _bytes(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would wait for somebody to write into it
            raise BadInput("it is a folder." if stat.S_ISDIR(mode) else "it is a pipe, a socket or a device.")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise BadInput(f"it cannot be read: {error.strerror}.") from error
    if len(content) > LARGEST:
        raise BadInput(f"it is larger than {LARGEST // 1024} KiB, which no such file needs.")
    return content


def _text(content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise BadInput(f"it is not UTF-8 (byte 0x{byte:02x} at {error.start}). Save it as UTF-8.") from error
    if "\0" in text:
        raise BadInput("it holds null bytes, as UTF-16 does. Save it as UTF-8.")
    return text


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` within the limits of this file."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in UNREAD]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = count = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        if isinstance(event, AliasEvent) or event.anchor is not None:
            raise self._wrong(event, "anchors (&) and aliases (*) are not read; write the value out")
        if event.tag is not None:
            raise self._wrong(event, f"tags ({event.tag}) are not read")
        self.depth += 1
        self.count += 1
        if self.depth > DEEPEST:
            raise self._wrong(event, f"more than {DEEPEST} mappings and lists within each other")
        if self.count > MOST:
            raise self._wrong(event, f"more than {MOST} names and values")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise self._wrong(key_node, f"{str(key)[:LONGEST]!r} is no text, so it cannot be a name")
            if key in found:
                raise self._wrong(key_node, f"{key[:LONGEST]!r} is there twice")
            found[key] = self.construct_object(value_node, deep=deep)
        return found

    def construct_yaml_str(self, node: ScalarNode) -> str:
        text = self.construct_scalar(node)
        if re.search("[\ud800-\udfff]", text):
            raise self._wrong(node, "half a character (a surrogate) in a text")
        return text

    def construct_yaml_int(self, node: ScalarNode) -> int:
        value = self._number(node, super().construct_yaml_int)
        if not -(2**63) <= value < 2**63:
            raise self._wrong(node, "a whole number of more than 64 bits")
        return value

    def construct_yaml_float(self, node: ScalarNode) -> float:
        value = self._number(node, super().construct_yaml_float)
        if not math.isfinite(value):
            raise self._wrong(node, f"{node.value} is no number")
        return value

    def _number(self, node: ScalarNode, build: Any) -> Any:
        if len(node.value) > LONGEST:
            raise self._wrong(node, f"a number of more than {LONGEST} characters")
        try:
            return build(node)
        except ValueError as error:
            raise self._wrong(node, f"{node.value!r} is no number") from error

    @staticmethod
    def _wrong(where: Any, problem: str) -> ConstructorError:
        return ConstructorError(None, None, problem, where.start_mark)


for kind in ("str", "int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{kind}", getattr(_Loader, f"construct_yaml_{kind}"))
