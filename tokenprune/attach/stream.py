"""A conversation over a stream of frames, whose visual tokens in the cache stay within a budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tokenprune.attach import taps
from tokenprune.attach.cache import cache_name
from tokenprune.attach.guard import unwrapped
from tokenprune.attach.masks import layer_kinds
from tokenprune.attach.signals import project
from tokenprune.core.positions import compact
from tokenprune.errors import BadInput, Unsupported, unknown
from tokenprune.families.base import Family
from tokenprune.families.registry import family_of
from tokenprune.methods.base import Method, View

READS = ("features", "frame_features")
TEXT = -1  # frame number of a row that belongs to no frame
QUESTION, ANSWER = "\x01question\x01", "\x01answer\x01"
MASKED_AHEAD = "Its images see each other in both directions, which a stream of frames cannot show it."


@dataclass(frozen=True)
class StreamReport:
    """What is in memory. frames: seen so far, and of how many something is left; rows: of the cache."""

    frames: int
    frames_left: int
    visual_tokens: int
    rows: int
    next_position: int
    thinnings: int
    kv_bytes: int


class Stream:
    """Frames come in one at a time, questions in between; before there are more visual tokens than `budget`, a method
    thins the frames that are there.

    model, processor: of a supported family with chat template; frames enter the prompt as images. method: one that
    reads features alone and does not merge (`evs`, `vidcom2`, `dycoke`, `divprune`, `uniform`, `random`, ...),
    since rows of a cache can only be taken out. recent: newest frames that are never thinned. slack: part of the budget
    that a thinning frees beyond need, so that not every frame causes one.

    positions: `compact` renumbers what is left (cached keys are rotated to their new places), so that a stream never
    runs out of positions; `original` keeps every position id, and ends where the model's positions do.

    A row that closes or opens a frame goes with the frame's last token. Nothing is hooked into the model.
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
        positions: str = "compact",
    ) -> None:
        if positions not in ("compact", "original"):
            raise unknown("positions", positions, ("compact", "original"))
        if budget < 1 or recent < 0 or not 0 <= slack < 1:
            raise BadInput(
                f"budget={budget}, recent={recent}, slack={slack}: the budget must be 1 or more, recent 0 or more, and "
                "slack at least 0 and below 1."
            )
        other = [need.signal for need in method.needs if need.signal not in READS]
        if other or method.decodes:
            raise BadInput(
                f"{method.name} reads {', '.join(other) or 'decoding steps'}; a stream thins by features alone. Take "
                "evs, vidcom2, dycoke, divprune, uniform or random."
            )
        self.model, self.processor, self.method = unwrapped(model), processor, method
        self.family = family_of(self.model)
        self.text_model = self.family.language_model(self.model)
        if any(kind.window is not None for kind in layer_kinds(self.text_model)):
            raise Unsupported("A stream needs layers of full attention; this model has sliding windows.")
        if type(self.family).blocks is not Family.blocks:
            raise Unsupported(f"{self.family.name} cannot follow a stream. {MASKED_AHEAD}")
        _check_plain(method)
        self.budget, self.recent, self.slack, self.positions = budget, recent, slack, positions
        self.pieces = _pieces(processor)
        if positions == "compact":
            _check_rotation(self.text_model)
        self.reset()

    def reset(self) -> None:
        """Forget everything and start anew."""
        device = self.model.device
        self.cache = DynamicCache(config=self.model.config)
        self.frame = torch.empty(0, dtype=torch.long, device=device)  # of every row, TEXT for none
        self.place = torch.empty(0, dtype=torch.long, device=device)  # of a visual token in its frame, -1 for others
        self.places: Tensor | None = None  # [axes, rows] position ids
        self.features: Tensor | None = None  # [visual tokens, d]
        self.next, self.seen, self.thinnings = 0, 0, 0
        self.turn = "head"  # which piece of the template comes before the next frame
        self.unread: list[int] = []  # the end of an answer that the model has not read back yet

    @property
    def visual_tokens(self) -> int:
        """Visual tokens in the cache."""
        return 0 if self.features is None else len(self.features)

    def report(self) -> StreamReport:
        """What is in memory now."""
        return StreamReport(
            frames=self.seen,
            frames_left=len(self.frame[self.place >= 0].unique()),
            visual_tokens=self.visual_tokens,
            rows=len(self.frame),
            next_position=self.next,
            thinnings=self.thinnings,
            kv_bytes=sum(x.nbytes for layer in self.cache.layers for x in (layer.keys, layer.values)),
        )

    @torch.inference_mode()
    def see(self, frame: Image.Image) -> None:
        """Take in one frame; older ones are thinned first where the budget asks for it."""
        if not isinstance(frame, Image.Image):
            raise BadInput(f"A frame must be a PIL image, not {type(frame).__name__}.")
        text = self.pieces[self.turn] + self.processor.image_token
        special = {} if self.turn == "head" else {"add_special_tokens": False}
        inputs = dict(self.processor(images=frame, text=text, return_tensors="pt", **special).to(self.model.device))
        tokens = list(self.family.placeholders(self.model).values())
        new = int(torch.isin(inputs["input_ids"], torch.tensor(tokens, device=self.model.device)).sum())
        if self.visual_tokens + new > self.budget:
            self._thin(self.budget - new)
        self._run(inputs, self.seen)
        self.seen += 1
        self.turn = "between"

    @torch.inference_mode()
    def ask(self, question: str, max_new_tokens: int = 40, remember: bool = True) -> str:
        """Greedy answer to a question about what was seen. remember: whether both stay in the conversation."""
        if not self.seen:
            raise BadInput("No frame has been seen yet. Call see(frame) first.")
        before, state = len(self.frame), (self.next, self.turn, self.unread)
        opening = self.pieces["text turn"] if self.turn == "turn" else self.pieces["question"]
        text = opening + question + self.pieces["prompt"]
        ids = self.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        logits = self._run({"input_ids": ids.to(self.model.device)}, TEXT)
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        said: list[int] = []
        while len(said) < max_new_tokens:
            token = int(logits.argmax())
            if token in ends:
                break
            said.append(token)
            if len(said) < max_new_tokens:
                logits = self._run({"input_ids": torch.tensor([[token]], device=self.model.device)}, TEXT)
        self.turn, self.unread = "turn", said[-1:] if len(said) == max_new_tokens else []
        if not remember:
            self._cut(torch.arange(before, device=self.model.device))
            self.next, self.turn, self.unread = state
        return self.processor.decode(said, skip_special_tokens=True).strip()

    def _run(self, inputs: dict[str, Tensor], frame: int) -> Tensor:
        """Read one piece; logits [V] of its last token."""
        ids = inputs["input_ids"]
        if self.unread:
            ids = torch.cat([ids.new_tensor([self.unread]), ids], dim=1)
            self.unread = []
        inputs = inputs | {"input_ids": ids}
        inputs.pop("attention_mask", None)
        if "mm_token_type_ids" in inputs:
            kinds = inputs["mm_token_type_ids"]
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(kinds, (ids.shape[1] - kinds.shape[1], 0))
        places = self._places(inputs) + self.next
        limit = self.text_model.config.max_position_embeddings
        if int(places.max()) >= limit:
            raise BadInput(
                f"This stream needs position {int(places.max())}, and the model has {limit}. Use positions='compact', "
                "or start anew with reset()."
            )
        found: list[Tensor] = []
        handle = self.text_model.register_forward_pre_hook(
            lambda module, args, kwargs: found.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        try:
            given = places[:, None] if len(places) > 1 else places
            out = self.model(**inputs, position_ids=given, use_cache=True, **{cache_name(self.model): self.cache})
        finally:
            handle.remove()
        tokens = list(self.family.placeholders(self.model).values())
        visual = torch.isin(ids[0], torch.tensor(tokens, device=ids.device)) & (frame >= 0)
        rows = torch.full_like(ids[0], frame)
        if frame == 0:
            rows[: int(visual.long().argmax())] = TEXT  # the opening of the conversation stays
        self.frame = torch.cat([self.frame, rows])
        self.place = torch.cat([self.place, torch.where(visual, visual.long().cumsum(0) - 1, -1)])
        self.places = places if self.places is None else torch.cat([self.places, places], dim=1)
        own = found[0][0, visual]
        self.features = own if self.features is None else torch.cat([self.features, own])
        self.next = int(places.max()) + 1
        return out.logits[0, -1]

    def _places(self, inputs: dict[str, Tensor]) -> Tensor:
        """Position ids [axes, L] of a piece, from 0 on."""
        base, ids = self.family.base(self.model), inputs["input_ids"]
        count = torch.arange(ids.shape[1], device=ids.device)
        if not hasattr(base, "get_rope_index"):
            return count[None]
        if "image_grid_thw" not in inputs:
            return count.expand(3, -1)
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw")
        return base.get_rope_index(**{name: inputs[name] for name in names})[0][:, 0]

    def _thin(self, most: int) -> None:
        """Leave at most `most` visual tokens, and the slack less where there is that much to take."""
        safe = self.frame >= self.seen - self.recent
        visual = self.place >= 0
        old = visual & ~safe
        kept = int((visual & safe).sum())
        if kept > most:
            raise BadInput(
                f"The budget of {self.budget} visual tokens does not hold {self.recent} recent frames and a new one. "
                "Raise it, or give a smaller recent=."
            )
        k = max(most - int(self.budget * self.slack) - kept, 0)
        frames, number = self.frame[old].unique(return_inverse=True)
        size = int(self.place[visual].max()) + 1
        features = self.features[old[visual]]
        means = torch.zeros(len(frames), features.shape[1], device=features.device, dtype=torch.float32)
        means = means.index_add(0, number, features.float()) / number.bincount()[:, None]
        signals = {"features": features[None], "frame_features": means[None]}
        tokens = (number * size + self.place[old])[None]
        view = View(len(features), 1, ((len(frames), 1, size),), signals, tokens, len(frames) * size)
        index = replace(self.method, keep=min(k, len(features))).select(view).index[0]
        alive = visual & safe
        alive[old.nonzero().flatten()[index]] = True
        left = torch.isin(self.frame, self.frame[alive])
        keep = alive | (~visual & (left | (self.frame == TEXT) | safe))
        if self.positions == "compact":
            self._renumber(keep)
        self._cut(keep.nonzero().flatten())
        self.thinnings += 1

    def _renumber(self, keep: Tensor) -> None:
        """Close the gaps that the rows which are about to go leave in the position ids, and turn the keys there."""
        edges = (self.frame.diff() != 0).nonzero().flatten() + 1
        pieces = torch.tensor_split(torch.arange(len(self.frame), device=self.frame.device), edges.cpu())
        spans = [rows for rows in pieces if self.frame[rows[0]] != TEXT]
        new, moved = compact(self.places, keep, spans)
        change = torch.where(keep, new - self.places, 0)
        for layer in self.cache.layers:
            layer.keys = rotated(self.text_model, layer.keys, change)
        self.places = self.places + change
        self.next -= int(moved)

    def _cut(self, rows: Tensor) -> None:
        """Leave these rows of everything."""
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, rows], layer.values[:, :, rows]
        visual = self.place >= 0
        stays = torch.zeros_like(visual).index_fill(0, rows, True)
        self.features = self.features[stays[visual]]
        self.frame, self.place, self.places = self.frame[rows], self.place[rows], self.places[:, rows]


def rotated(text_model: PreTrainedModel, keys: Tensor, change: Tensor) -> Tensor:
    """Rotated keys [1, H, R, e] at positions that differ by `change` [axes, R]."""
    given = change[:, None] if len(change) > 1 else change
    cos, sin = (x.float()[:, None] for x in text_model.rotary_emb(keys.float(), given))
    width = cos.shape[-1]
    x = keys[..., :width].float()
    first, second = x.chunk(2, dim=-1)
    turned = x * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned.to(keys.dtype), keys[..., width:]], dim=-1)


@torch.no_grad()
def _check_rotation(text_model: PreTrainedModel) -> None:
    """Raise `Unsupported` where turning a key to another position does not give what the model computes there."""
    module, config = text_model.layers[0].self_attn, text_model.config
    weight = next(module.parameters())
    hidden = torch.randn(1, 2, config.hidden_size, generator=torch.Generator().manual_seed(0)).to(weight)
    axes = 3 if hasattr(text_model.rotary_emb, "mrope_section") else 1
    before = torch.tensor([[5, 900]] * axes, device=weight.device)
    after = before - torch.tensor([[3, 700], [1, 20], [0, 650]][:axes], device=weight.device)
    keys = []
    taps.install()
    try:
        for places in (before, after):
            rope = text_model.rotary_emb(hidden, places[:, None] if axes > 1 else places)
            keys.append(project(module, hidden, rope)[1])
    finally:
        taps.uninstall()
    turned = rotated(text_model, keys[0], after - before)
    if turned.shape != keys[1].shape or not torch.allclose(turned, keys[1], atol=0.02 * keys[1].abs().max().item()):
        raise Unsupported(
            "The keys of this model cannot be turned to other positions, so its stream cannot be renumbered. Use "
            "positions='original'."
        )


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


def _pieces(processor: Any) -> dict[str, str]:
    """The chat template's text around images, questions and answers."""

    def user(*parts: str) -> dict:
        content = [{"type": "image"} if p == "image" else {"type": "text", "text": p} for p in parts]
        return {"role": "user", "content": content}

    answer = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}

    def shown(*turns: dict) -> str:
        return processor.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=False)

    image = getattr(processor, "image_token", None)
    if not getattr(processor, "chat_template", None) or not image:
        raise BadInput("A stream needs a processor with a chat template and an image token.")
    whole = shown(user("image", "image", QUESTION), answer, user("image", QUESTION))
    plain = shown(user("image", QUESTION), answer, user(QUESTION))
    pieces = whole.split(image)
    if len(pieces) != 4 or whole.count(QUESTION) != 2 or whole.count(ANSWER) != 1:
        raise Unsupported("The chat template of this processor does not show images, questions and answers one by one.")
    head, between, middle, last = pieces
    before, rest = middle.split(QUESTION)
    return {
        "head": head,
        "between": between,
        "question": before,
        "prompt": last.split(QUESTION)[1],
        "turn": rest.split(ANSWER)[1],
        "text turn": plain.split(ANSWER)[1].split(QUESTION)[0],
    }
