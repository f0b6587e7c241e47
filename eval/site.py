"""What the site holds beside the pages in `docs/`, made when it is built: hooks of mkdocs, which `mkdocs.yml` names.

A page says `<!-- table: NAME -->` for a table of `eval.tables`, `<!-- part: FILE | HEADING -->` for a part of another
file of the repository, and `<!-- reference -->` for everything public. Pages of methods and notebooks are made whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import tokenprune
from eval.method_page import method_page
from eval.results import RESULTS
from eval.tables import TABLES
from tokenprune.chat import Chat
from tokenprune.core.selection import Selection
from tokenprune.families.base import Encoded, Family, Part
from tokenprune.methods.base import Method, View
from tokenprune.methods.decoding import DecodingMethod
from tokenprune.methods.registry import all_methods

ROOT = Path(__file__).parent.parent
COPIED = {"results/hf_tests.md": RESULTS / "hf_tests.md", "methods/faithfulness.md": RESULTS / "faithfulness.md"}
PICTURES = ("overview.png", "scenes_pareto.png", "clips_pareto.png", "lmms_eval_pareto.png", "bench_cpu.png")
PICTURE = re.compile(r"\((?:\.\./)+eval/results/(\w+\.png)\)")  # where pages find them in the repository
MARKER = re.compile(r"^<!-- (table|part|reference)(?:: (.+?))? -->$", re.MULTILINE)
EXTENDING = (Method, View, DecodingMethod, Selection, Family, Part, Encoded, Chat)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Every method has its entry under Methods."""
    entries = next(entry["Methods"] for entry in config.nav if "Methods" in entry)
    entries += [{name: f"methods/{name}.md"} for name in all_methods()]
    entries += [{"What they are held to": path} for path in ("methods/faithfulness.md",) if COPIED[path].exists()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that are made."""
    for path, text in pages():
        files.append(File.generated(config, path, content=text))
    for name in PICTURES:
        files.append(File.generated(config, f"pictures/{name}", abs_src_path=str(RESULTS / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put in what a page asks for."""
    up = "../" * page.file.src_uri.count("/")
    markdown = PICTURE.sub(rf"({up}pictures/\1)", markdown)
    return MARKER.sub(lambda found: MAKERS[found[1]](*filter(None, [found[2]])), markdown)


def pages() -> Iterator[tuple[str, str]]:
    """Path and text of every page that is made."""
    for cls in all_methods().values():
        yield f"methods/{cls.name}.md", method_page(cls)
    for path, source in COPIED.items():
        if source.exists():
            yield path, source.read_text()
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        yield f"notebooks/{notebook.stem}.md", notebook_page(notebook)


def notebook_page(path: Path) -> str:
    """The cells of a notebook, which is committed without its outputs."""
    cells = ((cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"])
    parts = [f"```python\n{text}\n```" if kind == "code" else text for kind, text in cells]
    return "\n\n".join([*parts, f"[This page as a notebook]({path.name})", ""])


def part(source: str) -> str:
    """The part of a file of the repository below a heading: `FILE | HEADING`."""
    name, heading = re.split(r"\s\|\s", source)
    pieces = re.split(r"^## (.+)\n", (ROOT / name).read_text(), flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))[heading].strip()


def reference() -> str:
    """All public names but those of methods, which have pages of their own; what methods and families are made of."""
    public = [getattr(tokenprune, name) for name in tokenprune.__all__]
    own = [one for one in public if not (isinstance(one, type) and issubclass(one, Method))]
    blocks, more = ([f"::: {one.__module__}.{one.__qualname__}" for one in found] for found in (own, EXTENDING))
    return "\n\n".join([*blocks, "## For methods and families", *more])


MAKERS: dict[str, Callable[..., str]] = {"table": lambda name: TABLES[name](), "part": part, "reference": reference}
