"""What is pruned, and where: a model's parts and the stages, as one run of the engine sees them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from tokenprune.core.flops import LayerShape
from tokenprune.engine.decode_steps import DecodeStages
from tokenprune.engine.masks import layer_kinds
from tokenprune.engine.refuse import check_runs, unwrap
from tokenprune.engine.report import layer_shape
from tokenprune.errors import unknown
from tokenprune.families.registry import family_of
from tokenprune.methods.place import Decode, EncoderPlace, Layer
from tokenprune.methods.stage import Stage
from tokenprune.signals.need import Need
from tokenprune.signals.table import SIGNALS

POSITIONS = ("original", "compact")
TURNS = ("refuse", "accept")
IMAGES = ("each", "frames")


@dataclass(frozen=True)
class Policies:
    """How position ids go on, whether later turns may see the images, and what several images of a prompt are."""

    positions: str = "original"
    turns: str = "refuse"
    images: str = "each"

    def __post_init__(self) -> None:
        """Raise `BadInput` where `prune` knows no such policy."""
        for name, known in (("images", IMAGES), ("positions", POSITIONS), ("turns", TURNS)):
            value = getattr(self, name)
            if value not in known:
                raise unknown(name, value, known)


class Setup:
    """A model, its family and parts, and the stages by where they stand. Nothing here changes."""

    def __init__(self, model: PreTrainedModel, stages: Sequence[Stage], policies: Policies) -> None:
        """Raises `BadInput` or `Unsupported` where this model cannot be pruned so."""
        self.policies = policies
        self.model = unwrap(model)
        self.family = family_of(self.model)
        self.text_model = self.family.language_model(self.model)
        check_runs(self.model, self.family, stages)
        encoder = [stage for stage in stages if isinstance(stage.place, EncoderPlace)]
        self.encoder_stages = sorted(encoder, key=lambda stage: stage.place.order)
        self.layer_stages = sorted((s for s in stages if isinstance(s.place, Layer)), key=lambda s: s.at)
        self.stages = [*self.encoder_stages, *self.layer_stages]  # of the prefill, in the order of a pass
        self.layer_kinds = layer_kinds(self.text_model)
        decoding = [stage for stage in stages if isinstance(stage.place, Decode)]
        self.decoding = DecodeStages(decoding, [kind.window for kind in self.layer_kinds]) if decoding else None
        # The layers that stages stand before, or that hold more than they show: from the first on, ours are in place.
        first = {0} if self.encoder_stages else set()
        decodes = {self.decoding.first} if self.decoding else set()
        self.stage_layers = sorted({stage.at for stage in self.layer_stages} | decodes | first)

    @property
    def decoding_stages(self) -> list[Stage]:
        """The stages at every decoding step."""
        return self.decoding.stages if self.decoding else []

    @property
    def dropping(self) -> list[Stage]:
        """The stages that may drop something: keep=1.0 (all of them, not one) changes nothing."""
        return [stage for stage in self.stages if not (isinstance(stage.method.keep, float) and stage.method.keep == 1)]

    @property
    def needs(self) -> set[Need]:
        """What the stages between the LLM's layers read."""
        return {need for stage in self.layer_stages for need in stage.method.needs}

    @property
    def encoder_needs(self) -> list[Need]:
        """What of it comes from the vision encoder."""
        return sorted((need for need in self.needs if SIGNALS[need.signal].encoder is not None), key=str)

    @property
    def tapped(self) -> bool:
        """Whether attention has to be listened to."""
        in_layers = any(SIGNALS[need.signal].taps for need in self.needs)
        return bool(self.decoding or self.encoder_stages or self.encoder_needs) or in_layers

    @functools.cached_property
    def layer_shapes(self) -> list[LayerShape]:
        """What each decoder layer costs; one that keeps a state in place of keys costs its linear maps alone."""
        shapes = [layer_shape(layer, self.text_model.config) for layer in self.text_model.layers]
        kinds = zip(shapes, self.layer_kinds, strict=True)
        return [shape if kind.keys else replace(shape, attention_width=0) for shape, kind in kinds]
