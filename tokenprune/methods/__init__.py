"""One file per published method. A file here is found by itself: registry, command line and tables come from it."""

import re
from functools import cache
from pathlib import Path

# A class, or further down in one the name that makes it a method.
_LINES = re.compile(r"^class (\w+)|^    name(?:: ClassVar\[str\])? = ", re.MULTILINE)


@cache
def classes() -> dict[str, str]:
    """The class of every method here and the module that has it; read from the text, since importing loads torch."""
    found: dict[str, str] = {}
    for path in sorted(path for folder in __path__ for path in Path(folder).glob("*.py")):
        last = None
        for line in _LINES.finditer(path.read_text(encoding="utf-8")):
            if line[1]:
                last = line[1]
            elif last:
                found[last] = f"{__name__}.{path.stem}"
    return found
