"""What the outcomes of transformers' tests say: which failures were expected, which were not, and the table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from eval.results import RESULTS
from tokenprune.evaluation.markdown import table

LIST = Path(__file__).with_name("expected.yaml")
RESULT = RESULTS / "hf_tests.json"
PAGE = RESULTS / "hf_tests.md"
COUNTS = ("passed", "refused", "failed", "skipped")


@dataclass
class Outcome:
    """What became of a test in a mode. errors: type and text of every exception, those of subtests too.

    stages, dropped: stages that ran on the last prompts of the test's models, and the visual tokens that they dropped.
    seconds: of the processor.
    """

    outcome: str = ""
    errors: list[str] = field(default_factory=list)
    stages: int = 0
    dropped: int = 0
    seconds: float = 0.0


Results = dict[str, dict[str, dict[str, Outcome]]]  # [model type][mode][test class::test]


class Expected(BaseModel):
    """A failure that is as it should be. tests: regular expressions of whole names; modes: their letters.

    families: model types, all without. error: a regular expression that is somewhere in "type: text" of the exception,
    so another failure of the same test is not excused. by_design: not a refusal, but a check of shapes, which pruning
    changes. Each test, mode and family that is named has to fail so, or the entry is stale.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tests: tuple[str, ...] = Field(min_length=1)
    modes: str = Field(pattern="^[a-e]+$")
    families: tuple[str, ...] = ()
    error: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    by_design: bool = False

    def excuse(self, family: str, mode: str, test: str, error: str) -> str | None:
        """The pattern by which this failure is expected, if it is."""
        if mode not in self.modes or (self.families and family not in self.families):
            return None
        if not re.search(self.error, error, re.DOTALL):
            return None
        return next((pattern for pattern in self.tests if re.fullmatch(pattern, test)), None)


class Listed(BaseModel):
    """The committed list.

    also: folders of tests for models of a type that has its own. keep: what a model type keeps in modes c and d, where
    half of its tests' visual tokens would be all of them. testers: arguments of a folder's tester, where what it builds
    by default is always refused. short: tests that run without ALL=1, as regular expressions.
    """

    model_config = ConfigDict(extra="forbid")

    short: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    keep: dict[str, float | int] = {}
    testers: dict[str, dict[str, Any]] = {}
    expected: tuple[Expected, ...] = ()

    @classmethod
    def load(cls, path: Path = LIST) -> Listed:
        """The list of this folder, or another one."""
        return cls.model_validate(yaml.safe_load(path.read_text()))


@dataclass
class Verdict:
    """rows: counts for each model type and mode. excused: for each reason, where ("model type mode") it was met.

    unexpected: failures on no list, and stale: what the list says in vain, both with where. baseline: the same for what
    failed unpruned. unpruned: where no stage ran in any test.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    excused: dict[str, list[str]] = field(default_factory=dict)
    unexpected: dict[str, list[str]] = field(default_factory=dict)
    stale: dict[str, list[str]] = field(default_factory=dict)
    baseline: dict[str, list[str]] = field(default_factory=dict)
    unpruned: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether everything is as it was expected."""
        return not (self.unexpected or self.stale or self.unpruned)

    def lines(self) -> Iterable[str]:
        """What is not, to read."""
        for title, found in (("Not expected", self.unexpected), ("Expected in vain", self.stale)):
            yield from (f"{title}: {text}\n    in {', '.join(where)}" for text, where in found.items())
        yield from (f"No stage ran in any test: {where}" for where in self.unpruned)


def judge(results: Results, listed: Listed, complete: bool = True) -> Verdict:
    """Hold the outcomes against the list. complete: whether every model type ran, so that one without families that
    excused nothing is stale."""
    verdict = Verdict()
    used: set[tuple[Expected, str, str, str]] = set()  # entry, pattern, mode, family
    for family, modes in results.items():
        for mode, tests in modes.items():
            counts = dict.fromkeys(COUNTS, 0)
            for test, one in tests.items():
                counts[_count(family, mode, test, one, listed, used, verdict)] += 1
            stages = sum(one.stages > 0 for one in tests.values())
            dropped = sum(one.dropped > 0 for one in tests.values())
            verdict.rows.append({"family": family, "mode": mode} | counts | {"stages": stages, "dropped": dropped})
            if mode in "abcd" and not stages:
                verdict.unpruned.append(f"{family} {mode}")
    for entry in listed.expected:
        for pattern in entry.tests:
            for mode in entry.modes:
                where = [f"{family} {mode}" for family in _vain(entry, pattern, mode, results, used, complete)]
                if where:
                    verdict.stale.setdefault(f"{pattern}: {entry.error}", []).extend(where)
    return verdict


def _count(family: str, mode: str, test: str, one: Outcome, listed: Listed, used: set[tuple], verdict: Verdict) -> str:
    """The column that an outcome belongs to; failures go into the verdict."""
    if one.outcome != "failed":
        return one.outcome
    name, where = test.rpartition("::")[2], f"{family} {mode}"
    shapes = []
    for error in one.errors or ["it does not say why"]:
        line = f"{name}: {error.splitlines()[0][:300]}"
        if mode == "none":
            verdict.baseline.setdefault(line, []).append(where)
            return "failed"
        for entry in listed.expected:
            pattern = entry.excuse(family, mode, name, error)
            if pattern is not None:
                used.add((entry, pattern, mode, family))
                shapes.append(entry.by_design)
                verdict.excused.setdefault(entry.reason, []).append(where)
                break
        else:
            verdict.unexpected.setdefault(line, []).append(where)
            return "failed"
    return "skipped" if all(shapes) else "refused"


def _vain(entry: Expected, pattern: str, mode: str, results: Results, used: set[tuple], complete: bool) -> list[str]:
    """Families whose tests of this name ran in this mode and did not fail as the entry says. One without families is
    in vain if it is so in all of them."""
    ran = [
        family
        for family in entry.families or results
        if any(re.fullmatch(pattern, test.rpartition("::")[2]) for test in _tests(results, family, mode))
    ]
    vain = [family for family in ran if (entry, pattern, mode, family) not in used]
    return vain if entry.families or (complete and vain == ran) else []


def _tests(results: Results, family: str, mode: str) -> Mapping[str, Outcome]:
    return results.get(family, {}).get(mode, {})


def page(data: Mapping[str, Any], modes: Mapping[str, str]) -> str:
    """A result as a Markdown page. modes: what their letters stand for."""
    rows = {(row["family"], row["mode"]): row for row in data["rows"]}
    families, letters = (list(dict.fromkeys(key[i] for key in rows)) for i in (0, 1))
    body = []
    for family in families:
        cells = [rows.get((family, mode)) for mode in letters]
        body.append([f"`{family}`", *(" / ".join(str(c[n]) for n in COUNTS) if c else "" for c in cells)])
        body[-1].append(" / ".join(str(c["dropped"]) for c in cells if c and c["mode"] in "cd"))
    total = [sum(row[n] for row in data["rows"] if row["mode"] == mode) for mode in letters for n in COUNTS]
    sums = [" / ".join(map(str, total[i : i + len(COUNTS)])) for i in range(0, len(total), len(COUNTS))]
    body.append(["**all**", *sums, ""])
    versions = data["versions"]
    lines = [
        "# transformers' own model tests on pruned models",
        "",
        "Written by `make hf-tests`. Each cell: tests that passed / were refused as expected / failed / were skipped.",
        "A pruned mode runs what passed unpruned; skipped there are checks of shapes, which pruning changes by design.",
        "In every mode labels count from behind the images on, prompts that end with an image get a question,",
        "and no mask hides the end of a row: as they come, pruning is refused, and nothing would be tested.",
        "",
        *(f"- {mode}: {modes[mode]}" for mode in letters),
        "",
        table(["model type", *letters, "tests that dropped tokens, c / d"], body),
        "",
        f"{data['selection'].capitalize()} list, transformers {versions['transformers']} with tests of "
        f"{versions['tests']}{data['note']}, torch {versions['torch']}, Python {versions['python']}, {data['date']}.",
        "",
        "## Expected",
        "",
        table(["failures", "model types", "reason"], _reasons(data["excused"])),
    ]
    for title, name in (("Not expected", "unexpected"), ("Expected in vain", "stale"), ("Failed unpruned", "baseline")):
        if data[name]:
            lines += ["", f"## {title}", "", *(f"- `{text}`: {', '.join(where)}" for text, where in data[name].items())]
    return "\n".join(lines) + "\n"


def _reasons(excused: dict[str, list[str]]) -> list[list[object]]:
    return [[len(found), len({one.split()[0] for one in found}), reason] for reason, found in sorted(excused.items())]
