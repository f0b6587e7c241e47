"""What is installed is what constraints.txt says; the table of versions that were run."""

from __future__ import annotations

import sysconfig
from importlib.metadata import distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from eval.lock import LOCK, TORCH_FAMILY
from eval.versions import count, merge_rows

OWN = {"tokenprune", "tokenprune-centre", "pip"}  # pip came with the environment


def pins(text, environment=None):
    """Name -> version of the lines that hold for this Python and system."""
    found = [Requirement(line) for line in text.splitlines() if not line.startswith("#")]
    return {
        canonicalize_name(one.name): str(one.specifier).removeprefix("==")
        for one in found
        if one.marker is None or one.marker.evaluate(environment)
    }


def differences(installed, pinned):
    """What is installed otherwise than it is pinned."""
    for name, version in sorted(installed.items()):
        if name not in OWN and not TORCH_FAMILY.fullmatch(name) and pinned.get(name) != version:
            yield f"{name} {version}: {pinned.get(name, 'not')} pinned"


def test_everything_installed_is_pinned():
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    installed = {canonicalize_name(one.name): one.version for one in distributions(path=list(folders))}
    assert {"torch", "transformers", "pytest"} <= set(installed)
    found = list(differences(installed, pins(LOCK.read_text())))
    assert not found, f"`make clean test`, or `make lock` if pyproject.toml changed: {found}"


def test_a_difference_is_found():
    text = "# what for\na==1.0\nb-c==2.0 ; python_full_version >= '3.13'\n"
    assert pins(text, {"python_full_version": "3.11.7"}) == {"a": "1.0"}
    pinned = pins(text, {"python_full_version": "3.14.0"})
    assert pinned == {"a": "1.0", "b-c": "2.0"}
    own = {"tokenprune": "0.1.0", "pip": "23.2", "torch": "2.13.0+cpu", "nvidia-cublas": "13.1", "triton": "3.7.1"}
    assert not list(differences({"a": "1.0", "b-c": "2.0"} | own, pinned))
    assert list(differences({"a": "1.0.1", "torchvision": "0.28.0"}, pinned)) == [
        "a 1.0.1: 1.0 pinned",
        "torchvision 0.28.0: not pinned",
    ]


def test_a_row_of_the_version_table_replaces_that_of_the_same_versions():
    def row(python, transformers, passed):
        return {"python": python, "torch": "2.13.0+cpu", "transformers": transformers, "passed": passed}

    rows = [row("3.11.7", "5.24.0", 1), row("3.12.1", "5.9.0", 2)]
    found = merge_rows(merge_rows(rows, row("3.11.7", "5.24.0", 3)), row("3.12.1", "5.10.0", 4))
    assert [one["passed"] for one in found] == [3, 2, 4]


def test_tests_are_counted_as_pytest_reports_them(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text('<testsuites><testsuite tests="9" failures="2" errors="1" skipped="3"/></testsuites>')
    assert count(report) == {"passed": 3, "failed": 3, "skipped": 3}
