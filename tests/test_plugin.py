"""A method and a family of another package are found once it is installed, and nothing else has to be edited."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent / "plugin"
PROGRAM = """
import json, sys
from tokenprune import cli, scenes
from tokenprune.chat import Chat
from tokenprune.families.registry import family_of
print(json.dumps(family_of(Chat.load(scenes.MODEL).model).name))
sys.argv = ["tokenprune", *sys.argv[1:]]
cli.main()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package installed, from a copy: building leaves files behind."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for path in PACKAGE.rglob("*.*"):
        if path.suffix in (".py", ".toml"):
            copy = source / path.relative_to(PACKAGE)
            copy.parent.mkdir(exist_ok=True)
            copy.write_text(path.read_text())
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", target, source], check=True, capture_output=True, timeout=300)
    return target


def run(site, *arguments):
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.package
def test_what_another_package_brings(site):
    done = run(site, "run", "--method", "centre", "--keep", "16", "--wide", "0.5", "--json")
    assert done.returncode == 0, done.stderr
    family, _, rest = done.stdout.partition("\n")
    assert json.loads(family) == "Framed LLaVA"
    assert json.loads(rest)["report"]["stages"][0]["after"] == [16]
    listed = run(site, "list")
    assert "centre" in listed.stdout
    assert "--wide 1.0  how much a column counts beside a row" in listed.stdout
