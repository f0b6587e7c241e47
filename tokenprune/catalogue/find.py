"""Finds what a name means: a method, by its name, its paper's name or arXiv number; a recipe; a policy of positions."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from tokenprune.catalogue.facts import ARXIV, title
from tokenprune.errors import BadInput
from tokenprune.methods.base import Method
from tokenprune.methods.registry import all_methods
from tokenprune.recipes import Recipe, load_recipe, recipe_names


@dataclass(frozen=True)
class Policy:
    """A paper whose idea is an argument here and no method."""

    names: tuple[str, ...]
    paper: str
    text: str


POLICIES = (
    Policy(
        ("GAP", "Grounding-Aware Token Pruning", "original"),
        "arXiv 2506.21873",
        "no method but the position policy `original`: survivors keep the position ids of the whole prompt. "
        'It goes with every method and is the default: tokenprune.prune(model, METHOD, positions="original"), '
        "--positions original on the command line, `positions: original` in a recipe, `positions` in the demo.",
    ),
    Policy(
        ("compact",),
        "no paper",
        "no method but a position policy: survivors are renumbered as if the prompt had been short. It goes with every "
        'method: tokenprune.prune(model, METHOD, positions="compact"), --positions compact on the command line, '
        "`positions: compact` in a recipe, `positions` in the demo.",
    ),
)


def find(name: str) -> list[type[Method] | Recipe | Policy]:
    """Everything that a name stands for, at least one; `BadInput` with the nearest names where there is none."""
    known = all_methods()
    if name in known:
        return [known[name]]
    if name in recipe_names():
        return [load_recipe(name)]
    number = ARXIV.search(name)
    if number is not None:
        return _by_number(name, number[0])
    asked = _key(name)
    own = [cls for cls in known.values() if asked in map(_key, (cls.name, cls.__name__))]
    found: list[type[Method] | Recipe | Policy] = []
    found += own or [cls for cls in known.values() if asked in map(_key, paper_names(cls))]
    found += [policy for policy in POLICIES if asked in map(_key, policy.names)]
    if not found:
        raise _nothing(name)
    return found


def _by_number(name: str, number: str) -> list[type[Method] | Recipe | Policy]:
    papers: list[type[Method] | Policy] = [*all_methods().values(), *POLICIES]
    exact = re.search(rf"{re.escape(number)}v\d+", name)
    found = [one for one in papers if exact and one.paper.endswith(exact[0])]
    found = found or [one for one in papers if number in one.paper]
    if not found:
        raise BadInput(f"No method here is of arXiv {number}. `tokenprune list` shows all.")
    return [*found]


def paper_names(method: type[Method]) -> list[str]:
    """What a paper calls its method: the start of the method's description, and the proper names in it."""
    head = re.split(r" ?[(:,;]|'s ", title(method))[0]
    words = [word.removesuffix("'s") for word in re.findall(r"[\w+'-]+", title(method).partition(" (")[0])]
    return [head, *(word for word in words if sum(c.isupper() for c in word) > 1)]


def _key(name: str) -> str:
    """A name without capitals, spaces and signs, which people write in many ways."""
    return re.sub(r"[^a-z0-9+]", "", name.lower())


def _nothing(name: str) -> BadInput:
    candidates = {_key(own): own for own in recipe_names()}
    candidates |= {_key(own): policy.names[0] for policy in POLICIES for own in policy.names}
    candidates |= {_key(own): cls.name for cls in all_methods().values() for own in (*paper_names(cls), cls.name)}
    near = [candidates[key] for key in difflib.get_close_matches(_key(name), candidates, n=5)]
    mend = f" Nearest: {', '.join(dict.fromkeys(near))}." if near else ""
    return BadInput(
        f"Unknown method, recipe or paper {name!r}. {mend} `tokenprune list [--recipes]` shows all.".replace("  ", " ")
    )
