"""The reference for models some of whose layers keep a state: the unpatched model on the rows that are left.

Such a layer has mixed a token into its state before anything could hide it, so hiding says nothing. Pruned before the
language model, every layer has to see what it would see of a prompt that was short from the start, at the positions
that the tokens had. Shares no code with the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.checking.reference import Outcome, renumber


class Shortened:
    """Hooks of one model, and how its rows lie: index int64 [B, K], the prompt column of each row of the reference."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.alive = outcome.alive(sorted(outcome.kept))
        width = int(self.alive.sum(1).max())
        self.index = torch.zeros(len(self.alive), width, dtype=torch.long)
        self.mask = torch.zeros(len(self.alive), width, dtype=torch.bool)
        for row, alive in enumerate(self.alive):
            columns = alive.nonzero().flatten()
            self.index[row, width - len(columns) :] = columns
            self.mask[row, width - len(columns) :] = True
        self.last = torch.empty(0)  # int64 [axes, B], the position of the last prompt token
        self.added = 0  # tokens behind the prompt

    def gather(self, columns: Tensor, hidden: Tensor) -> Tensor:
        """Rows of the reference [B, K, d] for prompt columns int64 [B, m]; any row for those that are not there."""
        table = torch.zeros(self.alive.shape, dtype=torch.long)
        rows = torch.arange(self.index.shape[1]).expand_as(self.index)
        for row, there in enumerate(self.mask):
            table[row, self.index[row, there]] = rows[row, there]
        at = table.to(hidden.device).gather(1, columns.clamp(min=0))
        return hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))

    def _mix(self, embeds: Tensor) -> Tensor:
        """Input embeddings in which merged tokens are mixed."""
        embeds = embeds.clone()
        for merges in self.outcome.merges.values():
            for row, sources, stayed, weights in merges:
                mixed = weights.to(embeds.device) @ embeds[row, sources].float()
                embeds[row, stayed] = mixed.to(embeds.dtype)
        return embeds

    def before_text(self, module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The prompt without what was dropped, or one more token behind it."""
        embeds = kwargs["inputs_embeds"]
        device, batch = embeds.device, len(embeds)
        if embeds.shape[1] == self.alive.shape[1]:
            given = kwargs.get("position_ids")
            given = torch.arange(embeds.shape[1])[None] if given is None else given.cpu()
            given = given[None] if given.ndim == 2 else given
            text = len(given) == 4 and len(getattr(module.rotary_emb, "mrope_section", ())) != 4
            given = given[1:] if text else given
            positions = given.long().expand(-1, batch, -1)
            if self.outcome.compact:
                positions, _ = renumber(positions, self.alive, self.outcome.removable, self.outcome.unpadded)
            self.added = 0
            self.last = positions[:, :, -1].clone()
            index, embeds = self.index.to(device), self._mix(embeds)
            embeds = embeds.gather(1, index[..., None].expand(-1, -1, embeds.shape[-1]))
            positions = positions.gather(2, self.index.expand(len(positions), -1, -1))
            mask = self.mask
        else:
            self.added += 1
            positions = (self.last + self.added)[..., None]
            mask = torch.cat([self.mask, torch.ones(batch, self.added, dtype=torch.bool)], dim=1)
        positions = positions.to(device)
        given = {"position_ids": positions[0] if len(positions) == 1 else positions}
        return args, kwargs | given | {"inputs_embeds": embeds, "attention_mask": mask.long().to(device)}


@contextmanager
def shortened_to(text_model: nn.Module, outcome: Outcome) -> Iterator[Shortened]:
    """While this is open, `text_model` gets the rows that `outcome` left: of a prompt, and in the decoding steps after
    it, one by one with a dynamic cache or without any."""
    reference = Shortened(outcome)
    handle = text_model.register_forward_pre_hook(reference.before_text, with_kwargs=True)
    try:
        yield reference
    finally:
        handle.remove()
