"""Whether lmms-eval and all that it needs can be used here: found out before any model is loaded."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tokenprune.errors import BadInput, TokenpruneError

EXTRA = "lmms-eval"
MEND = f"Install what fits: pip install 'tokenprune[{EXTRA}]'."


def check_packages() -> None:
    """Raises `BadInput` that names the first package that is missing, of a wrong version, or broken.

    All are imported here: lmms-eval leaves some of them until an answer is written down.
    """
    asked = requirements(EXTRA)
    for needed in asked:
        try:
            found = version(needed.name)
        except PackageNotFoundError as error:
            raise BadInput(f"`tokenprune eval` needs {needed.name}, which is not installed. {MEND}") from error
        if not needed.specifier.contains(found, prereleases=True):
            limits = f"{needed.name}{needed.specifier}"
            raise BadInput(f"`tokenprune eval` needs {limits}, but {needed.name} {found} is installed. {MEND}")
    homes = {canonicalize_name(package): top for top, listed in packages_distributions().items() for package in listed}
    for needed in asked:
        with naming(needed.name):
            import_module(homes[canonicalize_name(needed.name)])
    with naming("lmms-eval"):
        import_module("tokenprune.evaluation.harness")


def requirements(extra: str) -> list[Requirement]:
    """What an extra of the package asks for on this Python and system, beside what the package itself does."""
    try:
        listed = [Requirement(text) for text in requires("tokenprune") or []]
    except PackageNotFoundError as error:
        raise BadInput(
            f"tokenprune is not installed, so lmms-eval cannot find it by its entry point. {MEND}"
        ) from error
    found = []
    for one in listed:
        if one.marker is None or one.marker.evaluate({"extra": ""}) or not one.marker.evaluate({"extra": extra}):
            continue
        own = one.name == "tokenprune"  # an extra that holds another
        found += [part for name in one.extras for part in requirements(name)] if own else [one]
    return found


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Within it, `what` is imported; what fails there is raised as `BadInput` that names the packages it fails in."""
    try:
        yield
    except TokenpruneError:
        raise
    except Exception as error:  # packages that do not fit each other fail with whatever comes up
        root: BaseException = error
        while cause := root.__cause__ or root.__context__:
            root = cause
        guilty = ", ".join(_packages(root))
        said = " ".join(str(root).split())
        raise BadInput(f"`tokenprune eval` cannot use {what}: {said} ({guilty}). {MEND}") from error


def _packages(error: BaseException) -> list[str]:
    """The packages, with their versions, that an error is about: what could not be imported, or where it was raised."""
    if isinstance(error, ImportError) and error.name:
        names = [error.name.partition(".")[0]]
    else:
        roots = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
        files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
        tops = [f.relative_to(r).parts[0].removesuffix(".py") for f in files for r in roots if f.is_relative_to(r)]
        names = list(dict.fromkeys(reversed(tops)))[:3]
    known = packages_distributions()
    return [f"{known[name][0]} {version(known[name][0])}" if name in known else f"no {name}" for name in names]
