"""The one rule of what runs on what: whether a family has all that a method needs."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from tokenprune.families.base import Family
from tokenprune.methods.base import Method
from tokenprune.methods.place import EncoderPlace, Place
from tokenprune.signals.need import Need


@dataclass(frozen=True)
class Obstacle:
    """What keeps a family from running a method. need: the signal that it lacks, if it is that."""

    why: str
    need: Need | None = None

    def __str__(self) -> str:
        return f"it {self.why}" if self.need is None else f"no {self.need.signal}: {self.why}"

    def of(self, family: Family) -> str:
        """The same as a sentence about the family."""
        if self.need is None:
            return f"{family.name} {self.why}"
        variant = f":{self.need.variant}" if self.need.variant else ""
        return f"{family.name} has no {self.need.signal}{variant} signal: {self.why}"


def obstacle(family: Family, method: Method, place: Place, model: PreTrainedModel | None = None) -> Obstacle | None:
    """What keeps a family from running a method, or this model of it; None where nothing does. Without a model, what
    only some of its models give counts as given (see `condition`)."""
    if isinstance(place, EncoderPlace):
        reasons = [family.whole_encoder(model, media) for media in family.media]
        if None not in reasons:
            return Obstacle(f"takes no stage {place}: {reasons[0]} Give it a layer of the LLM.")
        return next((lacking for need in method.needs if (lacking := _lacks(family, need, model)) is not None), None)
    for need in method.needs:
        lacking = _lacks(family, need, model)
        if lacking is not None:
            return lacking
    if method.reads_grid and not family.knows_grids:
        return Obstacle(
            f"has no file that tells how its tokens lie in rows, columns and frames, which {method.name} reads. Write "
            "one, or take a method that reads features or attention alone, such as divprune or fastv."
        )
    if method.merges_in == "encoder" and not family.projects:
        return Obstacle("does not project its features one by one. Use merge_in='projected'.")
    return None


def _lacks(family: Family, need: Need, model: PreTrainedModel | None) -> Obstacle | None:
    why = family.lacks(need.signal, need.variant, model)
    return None if why is None else Obstacle(why, need)


def condition(family: Family, method: Method) -> str | None:
    """What a model of the family must have to run a method, where not all have it."""
    keys = [f"{need.signal}:{need.variant}" for need in method.needs]
    return next((family.conditions[key] for key in keys if key in family.conditions), None)
