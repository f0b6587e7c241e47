"""Blocks of the vision encoder behind the one whose output becomes the features: what they make is thrown away."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from tokenprune.engine.overrides import Overrides
from tokenprune.families.base import Family


class SparedBlocks:
    """Lets a vision encoder leave out its last blocks where neither features nor signals come from them.

    LLaVA's features are those of the last but one of CLIP's blocks, and transformers runs all of them. What the model
    makes of a picture is the same to the bit; the encoder's own last states, which nobody read, are not there.
    """

    def __init__(
        self, model: PreTrainedModel, family: Family, read: Collection[nn.Module], runs_all: Callable[[], bool]
    ) -> None:
        """read: blocks that signals are read in. runs_all: whether this thread's calls need every block now."""
        self.runs_all = runs_all
        towers: dict[int, tuple[nn.ModuleList, int]] = {}
        encodes: dict[str, int] = {}  # which of them each kind of media
        for media in family.getters:
            if family.whole_encoder(model, media) is None:
                found = family.encoder_blocks(model, media)
                last = max([found.last, *(i for i, block in enumerate(found.blocks) if block in read)])
                _, known = towers.get(id(found.blocks), (found.blocks, 0))
                towers[id(found.blocks)] = found.blocks, max(last, known)
                encodes[media] = id(found.blocks)
        left_out = {own: len(blocks) - last - 1 for own, (blocks, last) in towers.items()}
        self._left_out = {media: left_out[own] for media, own in encodes.items()}
        self.blocks = [block for blocks, last in towers.values() for block in list(blocks)[last + 1 :]]
        self.of = sum(len(blocks) for blocks, _ in towers.values())
        self._overrides = [Overrides(block) for block in self.blocks]

    def attach(self) -> None:
        """Let the blocks give back what they are given."""
        for override in self._overrides:
            override.wrap("forward", self._passing_on)

    def detach(self) -> None:
        """Let them run again."""
        for override in self._overrides:
            override.undo()

    def _passing_on(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.runs_all():
                return original(*args, **kwargs)
            return args[0] if args else kwargs["hidden_states"]

        return forward

    def blank(self, media: str, output: Any) -> None:
        """Take out of the output of a media's feature getter what spared blocks would have made."""
        left_out = self._left_out.get(media, 0)
        if not left_out or self.runs_all() or isinstance(output, tuple):
            return
        output.last_hidden_state = None
        if output.hidden_states is not None:
            output.hidden_states = (*output.hidden_states[:-left_out], *[None] * left_out)
