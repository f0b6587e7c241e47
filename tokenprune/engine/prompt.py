"""What one call of a model brought: its prompt, and which of its tokens something is read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenprune.engine.cache import PrunedLayer, cache_in
from tokenprune.engine.encoder_reader import Laid
from tokenprune.engine.refuse import read_mask
from tokenprune.errors import BadInput, Unsupported
from tokenprune.families.base import Family, Span
from tokenprune.families.layout import as_frames, join_spans, lay_out, placeholder_columns
from tokenprune.signals.need import Need

IGNORED = -100  # labels that do not count, by convention of the host library
MEDIA = ("pixel_values", "pixel_values_videos", "pixel_values_images", "image_hidden_states", "mm_encoder_outputs")


@dataclass
class Call:
    """What the caller of the model said of one forward.

    logits_to_keep: the last so many logits, 0 for all, or int64 columns.
    labels: int64 [B, L], or None.
    prompt_length: tokens of each row that are the prompt, padding not counted, or None.
    width: columns that `generate` was given, where it is what calls; they are the prompt.
    router_logits: whether the logits of a mixture's routers are asked for.
    """

    logits_to_keep: int | Tensor = 0
    labels: Tensor | None = None
    prompt_length: Any = None
    width: int | None = None
    router_logits: bool = False

    @property
    def reads_end(self) -> bool:
        """Whether the last columns are read, as `generate` reads them."""
        return self.labels is None and isinstance(self.logits_to_keep, int) and self.logits_to_keep > 0

    def question(self, length: int, past: int) -> int:
        """How many of the columns of a pass of `length` after `past` are a prompt: drafts and answers are not."""
        return length if self.width is None else max(0, min(length, self.width - past))

    def ends(self, valid: Tensor, past: int) -> Tensor | None:
        """int64 [B]: the first column after the prompt in each row; None where all of this pass is prompt.

        valid: bool [B, L], False for padding.
        """
        batch, length = valid.shape
        if self.prompt_length is not None:
            return self._read_lengths(valid)
        if self.labels is not None:
            counted = (self.labels != IGNORED).to(valid.device)
            return torch.where(counted.any(1), counted.long().argmax(1), length)
        if self.question(length, past) < length:
            return torch.full((batch,), self.question(length, past), device=valid.device)
        return None

    def _read_lengths(self, valid: Tensor) -> Tensor:
        told = torch.as_tensor(self.prompt_length, device=valid.device).reshape(-1)
        if told.is_floating_point() or len(told) not in (1, len(valid)):
            raise BadInput(
                f"prompt_length={self.prompt_length!r} does not fit: give one whole number for each of the "
                f"{len(valid)} rows of the batch, the tokens of its prompt without padding."
            )
        told = told.expand(len(valid))
        tokens = valid.sum(1)
        if bool(((told < 1) | (told > tokens)).any()):
            raise BadInput(
                f"prompt_length={told.tolist()} is out of range: the rows have {tokens.tolist()} tokens, padding not "
                "counted, and a prompt has one at least."
            )
        return (valid.long().cumsum(1) < told[:, None]).sum(1) + 1

    def read(self, spans: list[Span], length: int, last: list[int]) -> list[tuple[int, int]]:
        """(row, column) of the visual tokens and separators that a next token, a label or a logit is read from.

        last: the last column of each row that is not padding.
        """
        media: list[set[int]] = [set() for _ in last]
        for span in spans:
            media[span.row] |= {*span.columns, *(s.column for s in span.separators)}
        return [
            (row, c) for row, columns in enumerate(self._columns(length, last)) for c in sorted(columns & media[row])
        ]

    def _columns(self, length: int, last: list[int]) -> Sequence[set[int]]:
        if self.labels is not None:
            counted = (self.labels != IGNORED).cpu().numpy()
            return [{int(c) - 1 for c in row.nonzero()[0] if c > 0} for row in counted]
        if isinstance(self.logits_to_keep, Tensor):
            return [set(self.logits_to_keep.flatten().tolist())] * len(last)
        tail = set(range(length - self.logits_to_keep, length)) if self.logits_to_keep else set()
        return [tail | {column} for column in last]


@dataclass(frozen=True)
class Prompt:
    """What a forward of the base model was given.

    input_ids: int64 [B, L]; None without media, where a placeholder is a token that the model happened to generate.
    encoder_outputs: of media that were encoded before, by medium.
    columns: by placeholder id, for each row of the batch the prompt columns where it stands.
    mask: bool or int [B, P + L], False for padding; None: nothing is.
    blocks: int64 [B, L], tokens of equal number see each other in both directions; None: nobody does.
    packable: whether position ids could say that several sequences are packed into one row.
    """

    input_ids: Tensor | None = None
    encoder_outputs: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[int, list[list[int]]] = field(default_factory=dict)
    mask: Tensor | None = None
    blocks: Tensor | None = None
    packable: bool = False

    @classmethod
    def read(cls, family: Family, model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> Prompt:
        """From the arguments of a forward; raises `Unsupported` and `BadInput` for what cannot be a prompt."""
        cache, media = cache_in(kwargs), media_in(kwargs)
        input_ids = args[0] if args else kwargs.get("input_ids")
        encoded, columns = kwargs.get("mm_encoder_outputs"), {}
        if media:
            if input_ids is None:
                raise Unsupported("tokenprune finds visual tokens in input_ids. Pass input_ids, not inputs_embeds.")
            if kwargs.get("image_hidden_states") is not None or not isinstance(encoded, (dict, type(None))):
                raise Unsupported("tokenprune has to see the images encoded. Pass pixel_values, not their features.")
            family.check_prompt(kwargs)
            columns = placeholder_columns(input_ids, family.placeholders(model).values())
            if not any(any(rows) for rows in columns.values()):
                raise BadInput(
                    f"There is no image in the prompt: {media[0]} was given, but input_ids has no placeholder."
                )
        blocks = family.blocks(model, kwargs, cache is None or not cache.is_initialized)
        mask = kwargs.get("attention_mask")
        if media or (cache is not None and any(isinstance(layer, PrunedLayer) for layer in cache.layers)):
            mask = read_mask(mask, cache, blocks)
        return cls(
            input_ids=input_ids if media else None,
            encoder_outputs=dict(encoded or {}) if media else {},  # the forward itself adds to it
            columns=columns,
            mask=mask,
            blocks=blocks,
            packable=mask is None and kwargs.get("position_ids") is not None,
        )

    @property
    def has_media(self) -> bool:
        """Whether it brings images or videos."""
        return self.input_ids is not None

    def spans(
        self, family: Family, model: PreTrainedModel, laid: list[Laid], needs: Sequence[Need], images: str
    ) -> tuple[list[Span], dict[Need, list[Tensor]]]:
        """Its spans in reading order, and the vision encoder's signals of each.

        laid: what the encoder made of its media. images: `each` is a span by itself, or `frames` of one.
        """
        if self.input_ids is None:
            return [], {}
        tokens = family.placeholders(model)
        present = [media for media in tokens if any(self.columns[tokens[media]])]
        names = family.media_of([one.media for one in laid], present)
        found = []
        for media in dict.fromkeys(names):
            mine = [one for one, name in zip(laid, names, strict=True) if name == media]
            items = [parts for one in mine for parts in one.items]
            by_item = {need: [s for one in mine for s in one.signals[need]] for need in needs}
            for span, part in lay_out(items, self.columns[tokens[media]], media):
                found.append((span, {need: signal[span.item][part] for need, signal in by_item.items()}))
        found.sort(key=lambda pair: (pair[0].row, pair[0].columns[0]))
        spans = family.finish(model, [span for span, _ in found], self.input_ids)
        signals = {need: [signal[need] for _, signal in found] for need in needs}
        if images == "each":
            return spans, signals
        groups = as_frames(spans)
        whole = {need: [torch.cat([values[i] for i in own]) for own in groups] for need, values in signals.items()}
        return [join_spans([spans[i] for i in own]) if len(own) > 1 else spans[own[0]] for own in groups], whole


def media_in(arguments: Mapping[str, Any]) -> list[str]:
    """The arguments of a forward that bring pictures or videos."""
    return [name for name in MEDIA if _holds(arguments.get(name))]


def _holds(media: Any) -> bool:
    """Whether a media argument really brings something: generate() passes empty encoder outputs for text."""
    return media is not None and (isinstance(media, Tensor) or any(v is not None for v in media.values()))
