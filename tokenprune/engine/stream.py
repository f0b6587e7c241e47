"""A conversation over a stream of frames, whose rows in the cache stay within a budget."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral
from types import TracebackType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenprune.engine.cache import cache_name
from tokenprune.engine.masks import layer_kinds
from tokenprune.engine.memory import NONE, Memory, Unread
from tokenprune.engine.refuse import unwrap
from tokenprune.engine.rotate import check_rotation
from tokenprune.engine.run import run_on
from tokenprune.engine.template import Template
from tokenprune.errors import BadInput, Unsupported, unknown
from tokenprune.families.base import Family
from tokenprune.families.registry import family_of
from tokenprune.methods.base import Method, View

READS = ("features", "frame_features")
MASKED_AHEAD = "Its images see each other in both directions, which a stream of frames cannot show it."
# Text model -> what its streams take turns by: while one reads, it listens in on the model.
_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_locks_lock = threading.Lock()


@dataclass(frozen=True)
class StreamReport:
    """What is in memory. frames: seen so far, and of how many something is left; turns: questions with their answers
    that are remembered; rows: of the cache."""

    frames: int
    frames_left: int
    turns: int
    visual_tokens: int
    rows: int
    next_position: int
    thinnings: int
    kv_bytes: int


class Stream:
    """Frames come in one at a time, questions in between; before there are more visual tokens than `budget`, a method
    thins the frames that are there, and of the questions with their answers the newest `remember` stay.

    model, processor: of a supported family with chat template; frames enter the prompt as images. method: one that
    reads features alone and does not merge (`evs`, `vidcom2`, `dycoke`, `divprune`, `uniform`, `random`, ...),
    since rows of a cache can only be taken out. recent: newest frames that are never thinned. slack: part of the budget
    that a thinning frees beyond need, so that not every frame causes one. remember: turns (a question and its answer)
    that later ones can refer to; the oldest is forgotten whole.

    positions: `compact` renumbers what is left (cached keys are rotated to their new places), so that a stream never
    runs out of positions; `original` keeps every position id, and ends where the model's positions do. Where the model
    has too few positions for budget and turns together, a frame makes room by thinning first and forgetting then, a
    question by forgetting first.

    What was read while something was there keeps its trace when that is gone, as in every cache that rows are taken
    from. An error leaves the stream as it was before the call (which therefore holds both states while it runs).
    Nothing stays hooked into the model. Streams on one model take turns, so threads may share it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        method: Method,
        *,
        budget: int = 4096,
        recent: int = 1,
        slack: float = 0.125,
        remember: int = 8,
        positions: str = "compact",
    ) -> None:
        if positions not in ("compact", "original"):
            raise unknown("positions", positions, ("compact", "original"))
        for name, value, least in (("budget", budget, 1), ("recent", recent, 0), ("remember", remember, 0)):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise BadInput(f"The {name} must be {least} or more, a whole number, not {value!r}.")
        if not 0 <= slack < 1:
            raise BadInput(f"The slack must be at least 0 and below 1, not {slack}.")
        other = [need.signal for need in method.needs if need.signal not in READS]
        if other or method.decodes:
            raise BadInput(
                f"{method.name} reads {', '.join(other) or 'decoding steps'}; a stream thins by features alone. Take "
                "evs, vidcom2, dycoke, divprune, uniform or random."
            )
        self.model, self.processor, self.method = unwrap(model), processor, method
        self.family = family_of(self.model)
        self.text_model = self.family.language_model(self.model)
        if not self.family.trusted:
            raise Unsupported(
                f"No family file names model type {self.family.name!r}, and a stream has no first prompt that could be "
                "compared with its reference. Prune its prompts instead, or write a family file."
            )
        if any(kind.window is not None for kind in layer_kinds(self.text_model)):
            raise Unsupported("A stream needs layers of full attention; this model has sliding windows.")
        if type(self.family).blocks is not Family.blocks:
            raise Unsupported(f"{self.family.name} cannot follow a stream. {MASKED_AHEAD}")
        if self.family.no_stream:
            raise Unsupported(f"{self.family.name} {self.family.no_stream} Prune whole prompts instead.")
        _check_plain(method)
        self.budget, self.recent, self.slack, self.positions = budget, recent, slack, positions
        self.remember = remember
        self.template = Template.of(processor)
        if positions == "compact":
            check_rotation(self.text_model)
        with _locks_lock:
            self._lock = _locks.setdefault(self.text_model, threading.RLock())
        self._memory: Memory | None = self._empty()

    def reset(self) -> None:
        """Forget everything and start anew."""
        with self._lock:
            self._open()
            self._memory = self._empty()

    def close(self) -> None:
        """Let go of the cache; nothing can be seen or asked after it. Calling it again does nothing."""
        with self._lock:
            self._memory = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def visual_tokens(self) -> int:
        """Visual tokens in the cache."""
        return self._open().visual_tokens

    def report(self) -> StreamReport:
        """What is in memory now."""
        memory = self._open()
        return StreamReport(
            frames=memory.seen,
            frames_left=len(memory.frame[memory.visual].unique()),
            turns=memory.asked - memory.first,
            visual_tokens=memory.visual_tokens,
            rows=len(memory.frame),
            next_position=memory.next,
            thinnings=memory.thinnings,
            kv_bytes=memory.kv_bytes,
        )

    def see(self, frame: Image.Image) -> None:
        """Take in one frame; older ones are thinned first where the budget or the model's positions ask for it."""
        if not isinstance(frame, Image.Image):
            raise BadInput(f"A frame must be a PIL image, not {type(frame).__name__}.")
        if 0 in frame.size:
            raise BadInput(f"A frame of {frame.width} x {frame.height} pixels has nothing in it.")
        with self._change() as memory:
            text = self.template.open + self.processor.image_token
            try:
                inputs = self.processor(images=frame, text=text, return_tensors="pt", add_special_tokens=False)
            except ValueError as error:
                size = f"{frame.width} x {frame.height}, mode {frame.mode}"
                raise BadInput(f"The processor does not take a frame of {size}: {error}") from error
            inputs = dict(inputs.to(self.model.device))
            new = int(torch.isin(inputs["input_ids"], self._placeholders).sum())
            positions = int(self._positions(inputs).max()) + 1
            self._make_room(memory, new, positions, f"This frame of {new} visual tokens", asks=False)
            self._read(memory, inputs, memory.seen, NONE)
            memory.unread = self._tokens(self.template.close, frame=memory.seen)
            memory.seen += 1

    def ask(self, question: str, max_new_tokens: int = 40, remember: bool = True) -> str:
        """Greedy answer to a question about what was seen. remember: whether both stay in the conversation.

        Raises `BadInput`, before the model runs, where question and answer need more positions than there can be.
        """
        if not isinstance(question, str) or not question.strip():
            raise BadInput(f"The question must be words, not {question!r}.")
        if not isinstance(max_new_tokens, Integral) or isinstance(max_new_tokens, bool) or max_new_tokens < 1:
            raise BadInput(f"max_new_tokens must be 1 or more, a whole number, not {max_new_tokens!r}.")
        if not isinstance(remember, bool):
            raise BadInput(f"remember must be True or False here, not {remember!r}; stream(remember=) takes a number.")
        if not self._open().seen:
            raise BadInput("No frame has been seen yet. Call see(frame) first.")
        with self._change(keep=remember and self.remember > 0) as memory:
            lead = self.template.bare if memory.ends_in_turn else self.template.lead
            turn = memory.asked
            tokens = [row.token for row in self._tokens(lead + question + self.template.prompt)]
            if torch.isin(torch.tensor(tokens), self._placeholders.cpu()).any():
                raise BadInput("The question holds the token that stands for an image. Show frames by see(frame).")
            what = f"This question of {len(tokens)} tokens with an answer of up to {max_new_tokens}"
            self._make_room(memory, 0, len(tokens) + max_new_tokens - 1, what, asks=True)
            said, logits = [], self._read_text(memory, tokens, turn)
            ends = self.model.generation_config.eos_token_id
            ends = ends if isinstance(ends, list) else [ends]
            while (token := int(logits.argmax())) not in ends:
                said.append(token)
                if len(said) == max_new_tokens:
                    memory.unread = (Unread(token, NONE, turn),)
                    break
                logits = self._read_text(memory, [token], turn)
            answer = self.processor.decode(said, skip_special_tokens=True).strip()
            memory.unread += self._tokens(self.template.end, turn=turn)
            memory.asked += 1
            if turn - memory.first >= self.remember:
                memory.leave(memory.visual, memory.asked - self.remember, self._turning)
        return answer

    def _open(self) -> Memory:
        memory = self._memory
        if memory is None:
            raise BadInput("This stream is closed. Begin another with tokenprune.stream(model, processor).")
        return memory

    @contextmanager
    def _change(self, keep: bool = True) -> Iterator[Memory]:
        """A copy of what is in memory, which takes its place once the block has come to its end."""
        with self._lock, torch.inference_mode():
            memory = self._open().copy()
            self._refuse_pruned()
            yield memory
            if keep:
                self._memory = memory

    def _refuse_pruned(self) -> None:
        run = run_on(self.text_model)
        if run is not None and not run.is_lifted:
            raise Unsupported(
                "This model is pruned, and a stream thins by itself. Call remove() on the run, or leave its with "
                "block, and go on: the stream is as it was."
            )

    @property
    def _placeholders(self) -> Tensor:
        """int64: the ids of visual tokens."""
        return torch.tensor(list(self.family.placeholders(self.model).values()), device=self.model.device)

    @property
    def _turning(self) -> PreTrainedModel | None:
        return self.text_model if self.positions == "compact" else None

    def _empty(self) -> Memory:
        opening = self.processor.tokenizer(self.template.head)["input_ids"]
        axes = 3 if hasattr(self.family.base(self.model), "get_rope_index") else 1
        return Memory.empty(self.model, axes, opening)

    def _tokens(self, text: str, frame: int = NONE, turn: int = NONE) -> tuple[Unread, ...]:
        ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tuple(Unread(token, frame, turn) for token in ids)

    def _read_text(self, memory: Memory, tokens: list[int], turn: int) -> Tensor:
        return self._read(memory, {"input_ids": torch.tensor([tokens], device=self.model.device)}, NONE, turn)

    def _read(self, memory: Memory, inputs: dict[str, Tensor], frame: int, turn: int) -> Tensor:
        """Read what is unread and one piece more; logits [V] of its last token."""
        self._refuse_pruned()
        ids, ahead = inputs["input_ids"], memory.unread
        ids = torch.cat([ids.new_tensor([[row.token for row in ahead]]), ids], dim=1)
        own = ids.shape[1] - len(ahead)
        inputs = inputs | {"input_ids": ids}
        inputs.pop("attention_mask", None)
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = nn.functional.pad(inputs["mm_token_type_ids"], (len(ahead), 0))
        positions = self._positions(inputs) + memory.next
        thread, found = threading.get_ident(), []

        def listen(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if threading.get_ident() == thread:
                found.append(kwargs["inputs_embeds"])

        handle = self.text_model.register_forward_pre_hook(listen, with_kwargs=True)
        try:
            given = positions[:, None] if len(positions) > 1 else positions
            out = self.model(**inputs, position_ids=given, use_cache=True, **{cache_name(self.model): memory.cache})
        finally:
            handle.remove()
        self._refuse_pruned()  # by another thread, meanwhile
        frames = ids.new_tensor([row.frame for row in ahead] + [frame] * own)
        turns = ids.new_tensor([row.turn for row in ahead] + [turn] * own)
        visual = torch.isin(ids[0], self._placeholders) & (frames == frame) & (frame != NONE)
        memory.add(frames, turns, visual, positions, found[0][0, visual])
        return out.logits[0, -1]

    def _positions(self, inputs: dict[str, Tensor]) -> Tensor:
        """Position ids [axes, L] of a piece, from 0 on."""
        base, ids = self.family.base(self.model), inputs["input_ids"]
        count = torch.arange(ids.shape[1], device=ids.device)
        if not hasattr(base, "get_rope_index"):
            return count[None]
        if "image_grid_thw" not in inputs:
            return count.expand(3, -1)
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw")
        return base.get_rope_index(**{name: inputs[name] for name in names})[0][:, 0]

    def _make_room(self, memory: Memory, new: int, positions: int, what: str, asks: bool) -> None:
        """Thin and forget until `new` visual tokens more are within the budget, and `positions` more ids are free.

        What comes in takes the place of its own kind first: a question that of turns, a frame that of frames.
        """
        limit = self.text_model.config.max_position_embeddings
        visual = memory.visual
        safe = visual & (memory.frame >= memory.seen - self.recent)
        most = self.budget - new if new else self.budget
        over = memory.visual_tokens > most
        if over and int(safe.sum()) > most:
            raise BadInput(
                f"The budget of {self.budget} visual tokens does not hold {self.recent} recent frames and a new one of "
                f"{new}. Raise it, or give a smaller recent=."
            )

        def missing(alive: Tensor, first: int) -> int:
            return memory.end(alive, first) + positions - limit

        short = memory.next + len(memory.unread) + positions - limit
        if short > 0 and self.positions == "original":
            raise BadInput(
                f"This stream needs {short} positions more than the {limit} of the model. Use positions='compact', or "
                "start anew with reset()."
            )
        if short > 0:
            lacking = missing(safe, memory.asked)
            if lacking > 0:
                raise BadInput(
                    f"{what} needs {positions} positions, and there is room for {positions - lacking}: the model has "
                    f"{limit}, and the opening and the newest frames (recent={self.recent}) take the others. Make it "
                    "shorter, or give a smaller recent=."
                )
            first = memory.first
            while missing(visual if asks else safe, first) > 0 and first < memory.asked:
                first += 1
            if first > memory.first:
                memory.leave(visual, first, self._turning)
                visual, safe = memory.visual, memory.visual & (memory.frame >= memory.seen - self.recent)
            short = missing(visual, memory.first)
        if over or short > 0:
            self._thin(memory, safe, most, max(short, 0), missing)

    def _thin(self, memory: Memory, safe: Tensor, most: int, short: int, missing: Callable[[Tensor, int], int]) -> None:
        """Leave at most `most` visual tokens, and the slack less where there is that much to take; fewer still while
        positions are `missing`. safe: bool [rows], visual tokens that stay."""
        visual = memory.visual
        old = visual & ~safe
        count = int(old.sum())
        k = min(max(most - int(self.budget * self.slack) - int(safe.sum()), 0), count)
        if short:
            k = max(min(k, count - short), 0)
        alive = self._choose(memory, old, k) | safe
        while k and (short := missing(alive, memory.first)) > 0:
            k = max(k - max(short, k // 8), 0)
            alive = self._choose(memory, old, k) | safe
        memory.leave(alive, memory.first, self._turning)
        memory.thinnings += 1

    def _choose(self, memory: Memory, old: Tensor, k: int) -> Tensor:
        """bool [rows]: k of the visual tokens `old`, by the method."""
        frames, number = memory.frame[old].unique(return_inverse=True)
        size = int(memory.cell[memory.visual].max()) + 1
        assert memory.features is not None, "there are visual tokens to choose from"
        features = memory.features[old[memory.visual]]
        means = torch.zeros(len(frames), features.shape[1], device=features.device, dtype=torch.float32)
        means = means.index_add(0, number, features.float()) / number.bincount()[:, None]
        signals = {"features": features[None], "frame_features": means[None]}
        tokens = (number * size + memory.cell[old])[None]
        view = View(len(features), 1, ((len(frames), 1, size),), signals, tokens, len(frames) * size)
        index = replace(self.method, keep=k).select(view).index[0]
        alive = torch.zeros_like(old)
        alive[old.nonzero().flatten()[index]] = True
        return alive


def _check_plain(method: Method) -> None:
    """Raise `BadInput` for a method that merges, or cannot take every number of tokens."""
    made = torch.Generator().manual_seed(0)
    features = torch.randn(1, 8, 4, generator=made)
    signals = {"features": features, "frame_features": features.view(1, 2, 4, 4).mean(2)}
    view = View(8, 1, ((2, 1, 4),), signals, torch.arange(8)[None], 8)
    if replace(method, keep=3).select(view).weights is not None:
        raise BadInput(
            f"{method.name} merges tokens, and rows of a cache can only be taken out. Take evs, vidcom2, dycoke, "
            "divprune, uniform or random."
        )
