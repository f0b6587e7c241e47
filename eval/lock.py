"""Writes constraints.txt: one version of everything that the project and its tests install. `make lock`.

Runs beside uv in an environment of its own, so it imports nothing else. Pins that still fit stay as they are.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "constraints.txt"
TORCH = ROOT / "constraints-torch.txt"
TORCH_FAMILY = re.compile(r"torch|triton|nvidia-.*|cuda-.*")  # whatever torch it is, it brings its own
HEADER = """\
# Everything that `make run` and `make test` install, for all Pythons and systems: written by `make lock`.
# Torch and what it brings are in constraints-torch.txt; pyproject.toml has the ranges that are supported.
"""


def name_of(pin: str) -> str:
    """The package that a line of a lock is about."""
    return re.split(r"[=; ]", pin, maxsplit=1)[0]


def resolve(limits: list[str], *options: str) -> list[str]:
    """The pins that uv finds for pyproject.toml within limits, as few versions of a package as will do."""
    with TemporaryDirectory() as folder:
        found, further = Path(folder) / "found.txt", Path(folder) / "limits.txt"
        found.write_text(LOCK.read_text())  # uv prefers what it finds here
        further.write_text("\n".join(limits))
        command = [Path(sys.executable).with_name("uv"), "pip", "compile", ROOT / "pyproject.toml", "--quiet"]
        command += ["--universal", "--python-version", "3.11", "--fork-strategy", "fewest", "--only-binary", ":all:"]
        command += ["--no-python-downloads", "--no-header", "--no-annotate", "--output-file", found]
        command += ["--constraints", TORCH, "--constraints", further]
        subprocess.run([*command, *options], check=True)
        return found.read_text().splitlines()


def lock(limits: list[str], *options: str) -> str:
    """The text of a lock."""
    pins = [pin for pin in resolve(limits, "--extra", "dev", *options) if not TORCH_FAMILY.fullmatch(name_of(pin))]
    # lmms-eval comes without its own list, which asks for torchvision and more.
    alone = resolve(limits, "--extra", "lmms-eval", "--no-deps", *options)
    pins += [pin for pin in alone if name_of(pin) == "lmms-eval"]
    return HEADER + "".join(f"{pin}\n" for pin in sorted(pins, key=name_of))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m eval.lock", description=__doc__)
    parser.add_argument("limits", nargs="*", help="further limits, as transformers==5.17.0")
    parser.add_argument("--out", type=Path, default=LOCK, help="file to write")
    parser.add_argument("--upgrade", action="store_true", help="take the newest of everything")
    given = parser.parse_args()
    given.out.write_text(lock(given.limits, *["--upgrade"] * given.upgrade))
