"""The ledger: what every method is held to, what holds it to that, and where it differs on purpose.

`python -m eval.faithfulness` writes `eval/results/faithfulness.json` and the table made of it, `faithfulness.md`, from
the method files (`origin`, `differences`) and the tests. What holds a method is a test

- that reads vectors of `tests/golden/`, which are what the published code gave for some inputs, or
- in `tests/test_golden*.py` or `tests/test_published*.py`: an independent computation of the published rule.

`test_fastv`, `test_fastv_of_...` hold `fastv`; else a test holds the methods by whose names it is parametrized.
`tests/conftest.py` fails such a test where the method does not run in it.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval import results
from tokenprune.evaluation.markdown import table
from tokenprune.methods.base import Method
from tokenprune.methods.registry import all_methods

TESTS = Path(__file__).parent.parent / "tests"
VECTORS = {path.stem for path in (TESTS / "golden").glob("*.npz")}
OWN_VECTORS = {"divprune_rand640", "divprune_clusters300"}  # of a float64 reference after the paper, not of its code
JSON, PAGE = results.RESULTS / "faithfulness.json", results.RESULTS / "faithfulness.md"


@dataclass(frozen=True)
class Holding:
    """A test, the methods that it holds, and the vectors of the published code that it reads."""

    test: str
    methods: tuple[str, ...]
    vectors: tuple[str, ...]


def holdings() -> Iterator[Holding]:
    """The tests that hold methods, in the order of their files."""
    for path in sorted(TESTS.glob("test_*.py")):
        whole = path.name.startswith(("test_golden", "test_published"))
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                read = strings(node) & VECTORS
                if (whole or read) and held_by(node):
                    vectors = tuple(sorted(read - OWN_VECTORS))
                    yield Holding(f"tests/{path.name}::{node.name}", held_by(node), vectors)


def strings(*nodes: ast.AST) -> set[str]:
    """The strings in a piece of code."""
    found = (node.value for root in nodes for node in ast.walk(root) if isinstance(node, ast.Constant))
    return {value for value in found if isinstance(value, str)}


def held_by(test: ast.FunctionDef) -> tuple[str, ...]:
    """The methods that a test holds: the one that its name begins with, else those that it is parametrized by."""
    name = test.name.removeprefix("test_") + "_"
    own = [method for method in all_methods() if name.startswith((f"{method}_", f"{method}s_"))]
    if own:
        return (max(own, key=len),)
    return tuple(sorted(strings(*test.decorator_list) & set(all_methods())))


def own_methods() -> dict[str, type[Method]]:
    """The methods of this package: those of others are held to what their authors say."""
    return {name: cls for name, cls in all_methods().items() if cls.__module__.startswith("tokenprune.")}


def ledger() -> dict[str, Any]:
    """What faithfulness.json holds: an entry for each method."""
    tests = list(holdings())
    found = {}
    for name, cls in own_methods().items():
        own = [test for test in tests if name in test.methods]
        found[name] = {
            "paper": cls.paper,
            "origin": asdict(cls.origin),
            "vectors": sorted({vector for test in own for vector in test.vectors}),
            "published_code": [test.test for test in own if test.vectors],
            "independent": [test.test for test in own if not test.vectors],
            "differences": [asdict(d) for d in cls.differences],
        }
    return found


def page(entries: dict[str, Any]) -> str:
    """faithfulness.md: the ledger as a table."""
    rows = []
    for name, entry in entries.items():
        vectors = ", ".join(f"`{vector}`" for vector in entry["vectors"])
        tests = ", ".join(f"`{test.partition('::')[2]}`" for test in entry["independent"])
        holds = [f"vectors of the published code: {vectors}"] * bool(vectors)
        holds += [f"our computation: {tests}"] * bool(tests)
        differs = [f"{d['what']}: {d['why']}{published(d['published'])}" for d in entry["differences"]]
        origin = str(all_methods()[name].origin)
        rows.append(
            [
                f"`{name}`",
                entry["paper"],
                origin,
                "; ".join(holds) or "the contract of all methods",
                ".<br>".join(differs),
            ]
        )
    head = ["method", "paper", "held to", "by", "differs on purpose: why (published behaviour)"]
    return "\n".join(["# What methods are held to", "", intro(entries), "", table(head, rows, rest=":---"), ""])


def intro(entries: dict[str, Any]) -> str:
    """What the table says, in numbers."""
    code = sum(bool(entry["vectors"]) for entry in entries.values())
    own = sum(bool(entry["independent"]) for entry in entries.values())
    return (
        f"{len(entries)} methods; vectors of the published code hold {code}, independent computations of the published "
        f"rule {own}. Made by `python -m eval.faithfulness` from the method files and the tests. Where code and paper "
        "differ, the code is right unless it says otherwise here. GAP is the position policy `original`."
    )


def published(options: dict[str, Any]) -> str:
    """Options as people write them."""
    return f" (`{', '.join(f'{name}={value!r}' for name, value in options.items())}`)" if options else ""


def main() -> None:
    """Write both files."""
    found = ledger()
    JSON.write_text(json.dumps(found, indent=2) + "\n")
    PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
