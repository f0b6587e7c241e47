"""Try every model type on a tiny random model: `python -m eval.census`, or the types that are named.

Each is pruned before the language model (divprune) and inside it (fastv), with both position policies, a padded batch
of several pictures: keep=1.0 against the unpruned model, and half of the tokens against the full-length model that
hides the others, prompt and three decoding steps (`tokenprune.check`). What is refused has to say why.
"""

from __future__ import annotations

import json
import re
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers.utils import logging

import tokenprune
from eval.census.types import APPLIES_NOT, NOT_BUILT, TINY, types
from tokenprune import TokenpruneError
from tokenprune.families.registry import all_families, family_of

OUT = Path(tokenprune.__file__).parent / "catalogue" / "models.json"
PLANS = (("divprune", 0), ("fastv", 2))


def shorten(why: str) -> str:
    """What of the conventions is missing, where that is why; else the whole reason."""
    missing = re.search(r"others are pruned: (.+?)\. A family file", why)
    return why if missing is None else f"{missing[1]}.".capitalize()


@torch.no_grad()
def try_type(name: str) -> dict[str, Any]:
    """What comes of one type: exact with the largest difference of any logit, refused, or wrong."""
    tiny = TINY[name]
    model, inputs = tiny.build(), tiny.inputs()
    try:
        family = family_of(model)
    except TokenpruneError as error:
        return {"outcome": "refused", "why": shorten(str(error))}
    found: dict[str, Any] = {
        "family": family.name if family.trusted else None,
        "media": list(family.media),
        "checked": [],
    }
    worst, why = 0.0, []
    for method, at in PLANS:
        for positions in ("original", "compact"):
            ran = f"{method} at {at}, {positions}"
            try:
                result = tokenprune.check(model, inputs, method, keep=0.5, at=at, positions=positions)
            except TokenpruneError as error:
                why.append(f"{ran}: {error}")
                continue
            if not result.ok:
                return found | {"outcome": "wrong", "why": f"{ran}: {result}"}
            worst = max(worst, result.keep_all, result.pruned)
            found["checked"].append(ran)
    if not found["checked"]:
        return found | {"outcome": "refused", "why": why[0].partition(": ")[2]}
    why = [f"No {why[0].replace(', original', '')}"] if why else []
    return found | {"outcome": "exact", "largest": worst, "why": " ".join([*filter(None, [tiny.note]), *why])}


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Types to try; default: all.")] = None,
    out: Annotated[Path, typer.Option(help="The table that the package brings.")] = OUT,
) -> None:
    """Try the types and write the table; ends with 1 where a type is wrong."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    console = Console()
    asked = names or [name for name in types() if name not in APPLIES_NOT]
    rows = json.loads(out.read_text())["types"] if names and out.exists() else {}
    for name in asked:
        for key in [key for key in TINY if key.partition(" ")[0] == name] or [name]:
            rows[key] = try_type(key) if key in TINY else {"outcome": "not tried", "why": NOT_BUILT[name]}
            console.print(f"{key}: {rows[key]['outcome']} {rows[key].get('largest', '')} {rows[key].get('why', '')}")
    table = {
        "transformers": version("transformers"),
        "families": len(all_families()),
        "types": dict(sorted(rows.items())),
        "apart": APPLIES_NOT,
    }
    out.write_text(json.dumps(table, indent=1) + "\n")
    wrong = [key for key, row in rows.items() if row["outcome"] == "wrong"]
    if wrong:
        console.print(f"wrong: {', '.join(wrong)}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
