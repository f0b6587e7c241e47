"""Facts of a method in words: where it stands, what it reads, what it is best for, its options."""

from __future__ import annotations

import inspect
import re
from dataclasses import Field
from typing import Any

from tokenprune.methods.base import Method, limits, options_of, places, signals_of
from tokenprune.methods.place import Decode, EncoderPlace, Layer, Pixels, Place, Vision
from tokenprune.methods.registry import all_methods
from tokenprune.recipes import Recipe, load_recipe, recipe_names
from tokenprune.signals.table import SIGNALS, Signal

SHARED = {field.name: field for field in options_of(Method)}  # type: ignore[type-abstract]
ARXIV = re.compile(r"\d{4}\.\d{4,5}")


def title(method: type[Method]) -> str:
    """The first sentence of its description: the paper's name, who wrote it and where it appeared."""
    first = (inspect.getdoc(method) or method.name).partition("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[\w)+])[.:](?= |$)", first)[0]


def same_paper(method: type[Method]) -> list[str]:
    """Names of other methods of the same paper."""
    number = ARXIV.search(method.paper)
    if number is None:
        return []
    return [name for name, cls in all_methods().items() if cls is not method and number[0] in cls.paper]


def place(*places: Place) -> str:
    """Where stages stand, in a sentence."""
    encoder = list(dict.fromkeys(str(one) for one in places if isinstance(one, EncoderPlace)))
    inside = [str(one.at) for one in places if isinstance(one, Layer) and one.at]
    layers = [f"before layer{'s' if len(inside) > 1 else ''} {', '.join(inside)}"] if inside else []
    starts = [str(one.start) for one in places if isinstance(one, Decode)]
    steps = [f"at every decoding step from layer{'s' if len(starts) > 1 else ''} {', '.join(starts)}"] if starts else []
    return " and ".join(encoder + [str(Layer(0))] * (Layer(0) in places) + layers + steps)


def layers(method: type[Method]) -> str:
    """The same as numbers: `0 10 21`, a run of them as `0-7`; `vision:3` for encoder blocks, `decode 3` for decoding
    steps from layer 3 on."""
    found = places(method)
    pixels = [one.written for one in found if isinstance(one, Pixels)]
    blocks = _run([one.block for one in found if isinstance(one, Vision)])
    inside = _run([one.at for one in found if isinstance(one, Layer)])
    starts = [str(one.start) for one in found if isinstance(one, Decode)]
    return " ".join([*pixels, *(f"vision:{one}" for one in blocks), *inside, *(["decode", *starts] if starts else [])])


def _run(numbers: list[int]) -> list[str]:
    """Numbers as they are written, more than three that follow each other as one."""
    if len(numbers) > 3 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return [f"{numbers[0]}-{numbers[-1]}"]
    return [str(number) for number in numbers]


def reads(method: type[Method]) -> list[str]:
    """Where its signals come from: features, encoder, attention, text, you."""
    return list(dict.fromkeys(_source(name, SIGNALS[name]) for name in signals_of(method)))


def _source(name: str, signal: Signal) -> str:
    kinds = {
        "you": signal.given,
        "pixels": signal.of_pixels,
        "encoder": bool(signal.encoder or signal.inside),
        "attention": bool(signal.taps),
    }
    return next((kind for kind, holds in kinds.items() if holds), "text" if signal.asks else "features")


def asks(method: type[Method]) -> bool:
    """Whether any of its stages chooses by the question, so that the next question would choose otherwise."""
    return any(stage.asks for _, stage in method().schedule(32))


def best_for(method: type[Method]) -> tuple[str, str]:
    """What it is meant for, as far as its nature tells: the medium, and how many questions one choice serves.

    One of the two is empty where it says nothing.
    """
    kinds = method.kind.split(", ")
    if "baseline" in kinds:
        return "", "comparison"
    if method.decodes:
        return "", "long answers"
    if "retrieval" in kinds:
        return "", "page search"
    medium = "videos" if "video" in kinds else "tiles" if "tiles" in kinds or method.scope == "item" else "pictures"
    return medium, "one question" if asks(method) else "any question"


def join_words(words: tuple[str, ...]) -> str:
    """Those that say something, with commas."""
    return ", ".join(filter(None, words))


def summary(method: type[Method], layers: int = 32) -> str:
    """What it is, on one line. layers: decoder layers of the model that it is to stand in."""
    return f"{method.kind}; {method.paper}; {place(*places(method, layers))}; for {join_words(best_for(method))}"


def own_options(method: type[Method]) -> list[Field]:
    """Options that it has alone, and common ones with a default of its own."""
    return [f for f in options_of(method) if f.name not in SHARED or f.default != SHARED[f.name].default]


def shown(value: Any) -> str:
    """A default as people write it."""
    return f"{value:.5g}" if isinstance(value, float) and not value.is_integer() else str(value)


def meaning(option: Field) -> str:
    """What an option does, and what it may be."""
    return "; ".join(filter(None, (option.metadata["help"], limits(option))))


def recipes_of(method: type[Method]) -> list[Recipe]:
    """Recipes with a stage of this method."""
    found = (load_recipe(name) for name in recipe_names())
    return [recipe for recipe in found if any(stage.method == method.name for stage in recipe.stages)]


def recipe_stages(recipe: Recipe) -> str:
    """The stages of a recipe in a sentence."""
    return ", ".join(f"{s.method.name} keep {shown(s.method.keep)} {place(s.place)}" for s in recipe.to_stages())


def cite(recipe: Recipe) -> str:
    """The figures that a recipe belongs to and their source; empty without any."""
    if recipe.published is None:
        return ""
    return f"{figures(recipe)} ({recipe.published.source})"


def figures(recipe: Recipe) -> str:
    """The published figures alone."""
    known = recipe.published.model_extra if recipe.published is not None else None
    return ", ".join(f"{name} {value}" for name, value in (known or {}).items())
