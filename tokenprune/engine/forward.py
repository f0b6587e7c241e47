"""One forward pass of a pruned model: the loop over its stages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenprune.core.merging import weighted_sums
from tokenprune.core.selection import indices_of
from tokenprune.core.trace import Ranking
from tokenprune.engine.cache import PrunedLayer
from tokenprune.engine.encoder_call import EncoderWork
from tokenprune.engine.layer_inputs import LayerInputs, Piece
from tokenprune.engine.select import Merge, select
from tokenprune.engine.stopwatch import Stopwatch, Stopwatches
from tokenprune.engine.token_state import TokenState
from tokenprune.errors import Unsupported
from tokenprune.methods.stage import Stage
from tokenprune.signals.need import Need
from tokenprune.signals.reading import Reading

log = logging.getLogger("tokenprune")
Merged = tuple[int, Tensor, Tensor, Tensor]  # batch row, prompt columns that went in, that stayed, weights


@dataclass
class StageRecord:
    """What a stage did: visual tokens before and after for each row of the batch, and the time its selection takes."""

    before: list[int]
    after: list[int]
    watch: Stopwatch | Stopwatches


@dataclass
class DeepStack:
    """Features that are added to the visual tokens after decoder layers. planes: layer -> [m, d]; order: int64 [B, L],
    the row of a plane that a prompt column gets, -1 for none."""

    planes: dict[int, Tensor]
    order: Tensor


@dataclass
class Bypass:
    """Rows that wait beside the layers: their inputs when they left, their hidden states, and whether they left before
    the text model saw them."""

    inputs: LayerInputs
    hidden: Tensor
    unseen: bool


@dataclass
class Forward:
    """State of one pass. Decoding steps and text-only prompts have no spans.

    inputs: of the layers from here on; `state` are the rows that they get.
    embeds: [B, L, d], input embeddings of the prompt, visual features among them.
    vision: signals of the vision encoder, for each span [n, ...].
    given: signals that the user brought.
    project: encoder features of single tokens as rows.
    read: (row, column) of the visual tokens that something is read from.
    reads_padding: whether a next token is read from padding on the right.
    captured: what taps left since the last stage.
    asked: whether a stage so far chose with the question in view.
    encoded: the calls of the vision encoder, where stages stand before or inside it.
    width: rows that the text model was given.
    followed: what else it was given of these rows, each with the same of the whole prompt.
    unseen: whether there are rows again that it was not given.
    past_rows: keys that each cache layer held before this pass.
    history: (first layer, rows) from each stage on.
    """

    inputs: LayerInputs
    embeds: Tensor
    vision: dict[Need, list[Tensor]]
    given: dict[str, list[Tensor]]
    project: Callable[[Tensor], Tensor]
    read: list[tuple[int, int]] = field(default_factory=list)
    reads_padding: bool = False
    rankings: list[Ranking] | None = None
    deepstack: DeepStack | None = None
    captured: dict[str, Tensor] = field(default_factory=dict)
    asked: bool = False
    bypass: Bypass | None = None
    encoded: list[EncoderWork] = field(default_factory=list)
    width: int = 0
    followed: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    unseen: bool = False
    past_rows: dict[int, int] = field(default_factory=dict)
    records: list[StageRecord] = field(default_factory=list)
    kept: list[list[Tensor]] = field(default_factory=list)
    merged: list[list[Merged]] = field(default_factory=list)
    history: list[tuple[int, TokenState]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.history.append((0, self.state))

    def __repr__(self) -> str:
        done = ", ".join(f"{one.before} -> {one.after}" for one in self.records) or "no stage yet"
        piece = self.piece
        return (
            f"Forward({piece.length} tokens after {piece.past}, {len(self.state.spans)} spans, {done}, {self.state!r})"
        )

    @property
    def state(self) -> TokenState:
        """The rows as they are now."""
        return self.inputs.state

    @property
    def piece(self) -> Piece:
        """What stays the same through the pass."""
        return self.inputs.piece

    @property
    def model(self) -> PreTrainedModel:
        """The text model."""
        return self.piece.model

    def state_before(self, layer: int) -> TokenState:
        """The rows that decoder layer `layer` processes."""
        return [state for at, state in self.history if at <= layer][-1]

    def enter_group(self, layer: PrunedLayer | None) -> None:
        """Start a group of layers that share their rows."""
        self.inputs = self.inputs.enter(layer)

    def announce(self, i: int, layer: PrunedLayer) -> None:
        """Tell a cache layer what the rows that it is about to receive stand for."""
        self.past_rows[i] = layer.rows
        self.inputs.announce(i, layer, self.asked)

    def run_stage(
        self, stage: Stage, hidden: Tensor, policy: str, given: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Select, shorten the rows and return the shortened hidden states [B, K', d].

        policy: `original` or `compact`. given: cos and sin of the text model, where it has computed them.
        """
        if stage.method.recalls:
            hidden = self._recall(hidden)
        before = self.state.visual_counts()
        watch = Stopwatch(hidden.device)
        passed = [self.state_before(i) for i in range(stage.at)]
        reading = self._reading(stage.at, hidden, given)
        choice = select(stage, self.state, reading, passed, len(self.piece.kinds), self.rankings)
        watch.stop()
        if stage.method.sets_aside:
            self.bypass = Bypass(self.inputs, hidden, stage.at == 0)
        column = self.state.column
        self.merged.append(
            [(one.row, column[one.row, one.sources], column[one.row, one.kept], one.weights) for one in choice.merges]
        )
        hidden = self._merge(choice.merges, hidden)
        if any(len(own) != len(rows) for own, rows in zip(choice.tokens, self.state.token_rows, strict=True)):
            hidden = self._shorten(choice.tokens, hidden, policy)
            if self.bypass is None:
                self._refuse_dead(stage.method.name)
        self.asked |= stage.method.asks
        self.captured = {}  # a later stage must hear its own
        self.records.append(StageRecord(before, self.state.visual_counts(), watch))
        self.kept.append(self.state.kept_columns())
        self.history.append((stage.at, self.state))
        if log.isEnabledFor(logging.DEBUG):
            log.debug(self._describe(stage))
        return hidden

    def enter_encoded(
        self, stages: Sequence[Stage], encoded: list[list[Tensor]], hidden: Tensor, policy: str
    ) -> Tensor:
        """Take out what stages before and inside the vision encoder left, one after the other; the shortened hidden
        states. encoded: for each stage and span bool [n], which tokens it left."""
        for number, (stage, masks) in enumerate(zip(stages, encoded, strict=True)):
            before = self.state.visual_counts()
            left = [mask.to(ids.device)[ids] for mask, ids in zip(masks, self.state.token_ids, strict=True)]
            counts = torch.stack([own.sum() for own in left]).tolist()
            chosen = [indices_of(own, count) for own, count in zip(left, counts, strict=True)]
            if any(len(own) != len(rows) for own, rows in zip(chosen, self.state.token_rows, strict=True)):
                hidden = self._shorten(chosen, hidden, policy)
                self._refuse_dead(stage.method.name)
            self.merged.append([])
            watches = [work.stages[number].watch for work in self.encoded]
            self.records.append(StageRecord(before, self.state.visual_counts(), Stopwatches(watches)))
            self.kept.append(self.state.kept_columns())
            self.history.append((0, self.state))
        return hidden

    def hand_over(self) -> None:
        """The text model itself computes cos and sin for the rows that are left."""
        self.inputs = LayerInputs(self.piece, self.state.hand_over(), self.inputs.past_shift, self.inputs.moved)

    def follow(self, given: Any) -> Any:
        """What a decoder layer is given beside hidden states, a tensor [B, width, ...], for the rows that are left;
        anything else as it is."""
        whole = next((whole for own, whole in self.followed if own is given), None)
        if whole is not None:
            return self.inputs.follow(whole, self.piece.length, "column")
        if self.unseen and self.inputs.is_of_rows(given, self.width):
            raise Unsupported(
                "The layers of this model are given more of every token than its hidden state, and tokens that come "
                "back have none of it: they left before the text model saw them. Let them leave at=1 or later."
            )
        return self.inputs.follow(given, self.width)

    def _reading(self, at: int, hidden: Tensor, given: tuple[Tensor, Tensor] | None) -> Reading:
        return Reading(
            rows=self.state,
            hidden=hidden,
            embeds=self.embeds,
            vision=self.vision,
            given=self.given,
            captured=self.captured,
            normalize=lambda rows: final_norm(self.model)(rows),
            rope=lambda: self.inputs.rope(at, hidden, given),
        )

    def _shorten(self, chosen: list[Tensor], hidden: Tensor, policy: str) -> Tensor:
        state, carried, moved = self.state.take(chosen, {"hidden": hidden}, renumber=policy == "compact")
        before = self.inputs.moved
        moved = before if moved is None else moved if before is None else before + moved
        self.inputs = LayerInputs(self.piece, state, self.inputs.past_shift, moved)
        return carried["hidden"]

    def _recall(self, hidden: Tensor) -> Tensor:
        """Bring back the tokens that an earlier stage set aside, as they were when they left."""
        assert self.bypass is not None, "check_runs lets no stage recall what none set aside"
        then, waiting = self.bypass.inputs, self.bypass.hidden
        state, hidden = self.state.recall(then.state, waiting, hidden, self.piece.length)
        inputs = LayerInputs(self.piece, state, then.past_shift, then.moved)
        self.inputs = inputs.shift_by(self.inputs.past_shift)
        self.unseen, self.bypass = self.bypass.unseen, None
        return hidden

    def _merge(self, merges: list[Merge], hidden: Tensor) -> Tensor:
        """Hidden states in which survivors are the mixtures that a method asked for, features of DeepStack likewise."""
        if not merges:
            return hidden
        hidden, stack = hidden.clone(), self.deepstack
        planes = {} if stack is None else {i: p.clone() for i, p in stack.planes.items()}
        for one in merges:
            weights = one.weights.to(hidden.device)
            if one.features is None:
                mixed, kept = weighted_sums(weights, hidden[one.row, one.sources]), one.kept
            else:
                mixtures = ((weights != 0).sum(-1) != 1) | (weights.sum(-1) != 1)
                mixed, kept = self.project(weights[mixtures] @ one.features), one.kept[mixtures]
            hidden[one.row, kept] = mixed.to(hidden.dtype)
            for plane in planes.values():
                assert stack is not None, "planes are its"
                order = stack.order[one.row, self.state.column[one.row]].to(plane.device)
                mixed = weighted_sums(weights.to(plane.device), plane[order[one.sources]])
                plane[order[one.kept]] = mixed.to(plane.dtype)
        if stack is not None:
            self.deepstack = DeepStack(planes, stack.order)
        return hidden

    def add_plane(self, layer: int, hidden: Tensor) -> Tensor:
        """Add the features that follow decoder layer `layer`, where there are some, to the visual tokens that are
        left."""
        stack = self.deepstack
        if stack is None or layer not in stack.planes:
            return hidden
        plane = stack.planes[layer].to(hidden.device, hidden.dtype)
        order = stack.order.gather(1, self.state.column)
        return hidden + plane[order.clamp(min=0)] * (order >= 0)[..., None]

    def _refuse_dead(self, method: str) -> None:
        """Raise `Unsupported` where something is read from a token that is gone."""
        if self.reads_padding:
            raise Unsupported(
                "This batch is padded on the right, so its next tokens are read from padding, which pruning takes "
                "away. Pad on the left: processor.tokenizer.padding_side = 'left'."
            )
        for row, column in self.read:
            there = (self.state.column[row] == column) & self.state.valid[row]
            if not bool(there.any()):
                raise Unsupported(
                    f"What follows column {column} of row {row} is predicted from that image token, which "
                    f"{method} drops. Put text between an image and what is predicted after it (the question, a "
                    "line break), and set labels of images and of the token after them to -100."
                )

    def _describe(self, stage: Stage) -> str:
        """What the last stage did, for people who debug. Waits for the device."""
        record, state = self.records[-1], self.state
        positions = [state.positions[:, row, state.valid[row]] for row in range(state.batch)]
        done = [
            f"row {row} {before} -> {after}, padding {state.width - state.counts[row]}, {_range(positions[row])}"
            for row, (before, after) in enumerate(zip(record.before, record.after, strict=True))
        ]
        return f"stage {len(self.records) - 1} {stage.place}: {'; '.join(done)} ({stage.method.name})"


def final_norm(text_model: PreTrainedModel) -> Any:
    """What a text model normalises its last hidden states with, under any of its names."""
    names = ("norm", "final_layernorm", "embedding_norm")
    return next(getattr(text_model, name) for name in names if hasattr(text_model, name))


def _range(positions: Tensor) -> str:
    """The smallest and largest of position ids, of whatever shape."""
    return f"positions {int(positions.min())}..{int(positions.max())}" if positions.numel() else "no positions"
