"""The built wheel, installed without the repository beside another package that brings a method and a family."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
PACKAGE = Path(__file__).parent / "plugin"
PROGRAM = """
import contextlib, io, json, sys
import tokenprune
from tokenprune import cli, scenes
from tokenprune.chat import Chat
from tokenprune.families.registry import family_of
tokenprune.FastV
said = {"file": tokenprune.__file__, "family": family_of(Chat.load(scenes.MODEL).model).name}
for name, words in json.loads(sys.argv[1]).items():
    sys.argv = ["tokenprune", *words]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            cli.main()
        except SystemExit as stop:
            said[name] = stop.code, out.getvalue()
print(json.dumps(said))
"""
COMMANDS = {
    "run": ["run", "--save", "overlay.png", "--repeat", "1"],
    "json": ["run", "--json", "--repeat", "1"],
    "centre": ["run", "--method", "centre", "--keep", "16", "--wide", "0.5", "--json", "--repeat", "1"],
    "list": ["list"],
    "described": ["list", "centre"],
}
pytestmark = pytest.mark.package


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with both packages installed, the other one from a copy: building leaves files behind."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for path in PACKAGE.rglob("*.*"):
        if path.suffix in (".py", ".toml"):
            copy = source / path.relative_to(PACKAGE)
            copy.parent.mkdir(exist_ok=True)
            copy.write_text(path.read_text())
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-compile"]
    subprocess.run([*install, "--target", target, ROOT, source], check=True, capture_output=True, timeout=300)
    return target


@pytest.fixture(scope="module")
def said(site, tmp_path_factory):
    """What the commands print, run from another folder in a process of their own; and that folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(COMMANDS)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {found[name][0] for name in COMMANDS} == {0}, (found, done.stderr)
    return found | {"folder": folder}


def test_the_wheel_works_without_the_repository(site, said):
    for path in [path for pattern in ("*.py", "py.typed") for path in (ROOT / "tokenprune").rglob(pattern)]:
        assert (site / path.relative_to(ROOT)).is_file(), "pyproject.toml lists all packages"
    for name in ("explain/page.js", "explain/page.css", "configs/benchmarks/scenes.yaml", "configs/fastv_k2_r50.yaml"):
        assert (site / "tokenprune" / name).is_file()
    assert Path(said["file"]).is_relative_to(site)
    assert '"kv_bytes"' in said["json"][1]


def test_run_in_a_process_of_its_own(said):
    """Dense and pruned answer, report and overlay, from another folder."""
    for text in ("dense", "pruned", "visual tokens before the LLM (divprune)", "KV cache", "answer time"):
        assert text in said["run"][1]
    assert min(Image.open(said["folder"] / "overlay.png").size) >= 480


def test_what_another_package_brings(said):
    """A method and a family are found once they are installed, and nothing else has to be edited."""
    assert said["family"] == "Framed LLaVA"
    assert json.loads(said["centre"][1])["report"]["stages"][0]["after"] == [16]
    assert "centre" in said["list"][1]
    assert "--wide 1.0  how much a column counts beside a row" in said["described"][1]
