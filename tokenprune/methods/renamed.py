"""Options that are gone, for one release: `phase=`, whose values are methods now, and old names."""

from __future__ import annotations

import warnings
from typing import Any

from tokenprune.errors import unknown

OWN = {  # what was `phase=` of the method itself; those of its stages end their names
    "flashvid": "vision",
    "framefusion": "first",
    "holitom": "outer",
    "lvlm_csp": "prune",
    "prunevid": "merge",
    "star": "visual",
    "todre": "diversity",
    "vflowopt": "recycle",
}


RENAMED = {"framefusion": {"places": "within"}}


def as_now(method: type[Any], options: dict[str, Any]) -> tuple[type[Any], dict[str, Any]]:
    """The method and its options as they are now, for those of the release before."""
    name = getattr(method, "name", "")
    for old, new in RENAMED.get(name, {}).items():
        if old in options:
            _warn(f"{old}= of {name}", f"{new}=")
            options = {new if one == old else one: value for one, value in options.items()}
    return _without_phase(method, options)


def _without_phase(method: type[Any], options: dict[str, Any]) -> tuple[type[Any], dict[str, Any]]:
    """The method that `phase=` meant, and the other options. Those that only other phases read are left out."""
    if "phase" not in options or getattr(method, "name", "") not in OWN:
        return method, options
    phases = {OWN[method.name]: method}
    phases |= {name.removeprefix(f"{method.name}_"): stage for name, stage in method.stages.items()}
    if options["phase"] not in phases:
        raise unknown(f"phase of {method.name}", options["phase"], phases)
    meant = phases[options["phase"]]
    _warn(f"phase={options['phase']!r} of {method.name}", repr(meant.name))
    elsewhere = {*method.__dataclass_fields__} - {*meant.__dataclass_fields__, "phase"}
    return meant, {name: value for name, value in options.items() if name not in {"phase", *elsewhere}}


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} goes in the next release. Write {new}.", DeprecationWarning, stacklevel=6)
