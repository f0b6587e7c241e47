"""A pruned model: puts the hooks on, runs the stages, takes everything off again."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from tokenprune.signals import taps
from tokenprune.engine.cache import PrunedLayer, adopt, cache_in, cache_name, widen
from tokenprune.engine.decode_steps import Decoder, StepReport
from tokenprune.engine.forward import DeepStack, Forward, Merged
from tokenprune.engine.refuse import (
    check_projection,
    check_stages,
    prepared_mask,
    refuse_checkpointing,
    refuse_compiled,
    refuse_packed,
    refuse_paged,
    refuse_parallel,
    unwrapped,
)
from tokenprune.engine.masks import layer_kinds, stray_window
from tokenprune.engine.overrides import Hook, Overrides
from tokenprune.engine.prompt import Call
from tokenprune.engine.report import Prefill, Report, layer_shape, measure
from tokenprune.engine.rows import Rows
from tokenprune.engine.signals import Signals, hear_content, listener, look_ahead
from tokenprune.engine.vision import EncoderReader
from tokenprune.core.flops import LayerShape
from tokenprune.core.selection import handed
from tokenprune.core.trace import Ranking
from tokenprune.errors import BadInput, Unsupported, unknown
from tokenprune.families.base import Span
from tokenprune.families.layout import as_frames, joined, lay_out, placeholder_columns
from tokenprune.families.registry import family_of
from tokenprune.methods.signals import SIGNALS, Need
from tokenprune.methods.stage import DECODE, Stage

POSITIONS = ("original", "compact")
TURNS = ("refuse", "accept")
IMAGES = ("each", "frames")
MEDIA = ("pixel_values", "pixel_values_videos", "pixel_values_images", "image_hidden_states", "mm_encoder_outputs")
# Text model -> its run, which must not keep the model alive.
_active: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Run]] = weakref.WeakKeyDictionary()


class Run:
    """A model with pruners attached. `remove()` (or leaving the `with` block) restores the model exactly."""

    def __init__(
        self,
        model: PreTrainedModel,
        stages: Sequence[Stage],
        positions: str = "original",
        turns: str = "refuse",
        images: str = "each",
    ) -> None:
        if images not in IMAGES:
            raise unknown("images", images, IMAGES)
        if positions not in POSITIONS:
            raise unknown("positions", positions, POSITIONS)
        if turns not in TURNS:
            raise unknown("turns", turns, TURNS)
        self.model = unwrapped(model)
        self.family = family_of(self.model)
        self.text_model = self.family.language_model(self.model)
        self.stages = sorted((s for s in stages if s.at != DECODE), key=lambda s: s.at)
        decoding = [s for s in stages if s.at == DECODE]
        self.positions, self.turns, self.images = positions, turns, images
        self.kinds = layer_kinds(self.text_model)
        self._cache_name = cache_name(self.text_model)
        self._stray_window = stray_window(self.text_model)
        self._routes = getattr(self.text_model.config, "output_router_logits", False)
        if self.stages or not decoding:
            check_stages(self.stages, len(self.text_model.layers))
        windows = [kind.window for kind in self.kinds]
        self.decoder = Decoder(decoding, windows) if decoding else None
        # The layers that stages stand before, or that hold more than they show: from the first on, ours are in place.
        self.places = sorted({s.at for s in self.stages} | ({self.decoder.first} if self.decoder else set()))
        if self.text_model in _active:
            raise Unsupported("This model is already pruned. Call remove() on the first run, or leave its with block.")
        # Of each thread: the pass that runs, what its caller said, whether the run is lifted, and the last prompt.
        self._local, self._caller, self._lifted, self._own = (threading.local() for _ in range(4))
        self._latest: Prefill | None = None
        self._handles: list[Any] = []
        self._given: dict[str, list[Tensor]] = {}
        self._rankings: list[Ranking] | None = None
        needs = {need for stage in self.stages for need in stage.method.needs}
        for need in sorted(needs, key=str):
            self.family.require(self.model, need.signal, need.variant)
        check_projection(self.stages, self.family)
        vision = sorted((need for need in needs if SIGNALS[need.signal].vision), key=str)
        self._tapped = bool(decoding) or any(SIGNALS[n.signal].heard or SIGNALS[n.signal].vision for n in needs)
        refuse_parallel(self.model)
        self._encoder = EncoderReader(self.model, self.family, vision)
        self._calls = Overrides(self.model)
        self._untap: weakref.finalize | None = None
        try:
            self._attach()
        except BaseException:
            self.remove()
            raise

    def __repr__(self) -> str:
        stages = ", ".join(f"{stage.method!r} at {stage.at}" for stage in self._all_stages())
        state = "attached to" if self._attached else "removed from"
        return f"Run({stages}, positions {self.positions}, {state} a {type(self.model).__name__})"

    def _all_stages(self) -> list[Stage]:
        return [*self.stages, *(self.decoder.stages if self.decoder else ())]

    @property
    def _dropping(self) -> list[Stage]:
        """The stages that may drop something: keep=1.0 (all of them, not one) changes nothing."""
        return [stage for stage in self.stages if not (isinstance(stage.method.keep, float) and stage.method.keep == 1)]

    def _attach(self) -> None:
        _active[self.text_model] = weakref.ref(self)
        if self._tapped:
            taps.install()
            self._untap = weakref.finalize(self.text_model, taps.uninstall)  # where it is dropped without remove()
            self._untap.atexit = False
            for module in self._listening():
                setattr(module, taps.MARK, True)
        self._encoder.attach()
        if hasattr(self.model, "generate"):
            self._calls.wrap("generate", self._noting_the_prompt)
        base = self.family.base(self.model)
        put, live = self.hold, self._unless_lifted
        put(self.model.register_forward_pre_hook(live(self._before_model), with_kwargs=True, prepend=True))
        put(base.register_forward_pre_hook(live(self._before_base), with_kwargs=True))
        put(base.register_forward_hook(live(self._after_base), always_call=True))
        put(self.text_model.register_forward_pre_hook(live(self._before_text), with_kwargs=True))
        put(self.text_model.register_forward_hook(live(self._after_text)))
        for i, layer in enumerate(self.text_model.layers):
            if i >= self.places[0]:
                put(layer.register_forward_pre_hook(live(self._layer_hook(i)), with_kwargs=True))
            if any(s.at == i + 1 and Need("attention_row", "content") in s.method.needs for s in self.stages):
                put(layer.register_forward_pre_hook(live(self._before_scoring), with_kwargs=True))

    def hold(self, handle: RemovableHandle) -> None:
        """Keep the handle of a hook that goes when this run is removed."""
        self._handles.append(handle)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """While this is open, the model runs unpruned in this thread."""
        self._lifted.now = True
        try:
            yield
        finally:
            self._lifted.now = False

    @property
    def is_lifted(self) -> bool:
        """Whether the model runs unpruned in this thread for the time."""
        return getattr(self._lifted, "now", False)

    def _unless_lifted(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        return Hook(lambda *arguments: None if self.is_lifted else hook(*arguments))

    def remove(self) -> None:
        """Take everything off: hooks, taps, this run's mark on the model. Calling it again does nothing."""
        if not self._attached:
            return
        del _active[self.text_model]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._encoder.detach()
        self._calls.undo()
        if self._untap is not None:
            self._untap()
            for module in self._listening():
                module.__dict__.pop(taps.MARK, None)

    def _listening(self) -> list[nn.Module]:
        return [*(layer.self_attn for layer in self.text_model.layers), *self._encoder.attention()]

    @property
    def _attached(self) -> bool:
        found = _active.get(self.text_model)
        return found is not None and found() is self

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    def give(self, **signals: Sequence[Tensor]) -> None:
        """Bring signals that no model of the family computes, for the prompts that follow (until given anew).

        clip_image: one tensor [n, e] for each image, tile or video of the prompt, in reading order; clip_text: one
        tensor [q, e] for each row of the batch.
        """
        for name in signals:
            if name not in SIGNALS or not SIGNALS[name].given:
                raise unknown("signal to give", name, [n for n, s in SIGNALS.items() if s.given])
        self._given |= {name: [torch.as_tensor(x) for x in values] for name, values in signals.items()}

    def trace(self) -> list[Ranking]:
        """From now on every stage of every prompt adds what it ranked by to this list (which copies it to the host)."""
        self._rankings = []
        return self._rankings

    @property
    def kept(self) -> list[list[Tensor]]:
        """For each stage, for each row of the last prompt: ascending int64 prompt columns of the visual tokens that are
        still there (0-based, padding counted)."""
        return self._last().kept

    @property
    def spans(self) -> list[Span]:
        """The images, tiles and videos of the last prompt: row, prompt columns and grid of each, in reading order."""
        return self._last().spans

    @property
    def merges(self) -> list[list[Merged]]:
        """For each stage what it merged: row of the batch, prompt columns [n] that went in, prompt columns [k] that
        stayed, and weights float32 [k, n]: the stayed token i became weights[i] @ hidden states of what went in (with
        merge_in='encoder': the projection of weights[i] @ encoder features)."""
        return self._last().merged

    def columns(self, layer: int) -> Tensor:
        """int64 [B, K]: the prompt column of each row that decoder layer `layer` had of the last prompt, -1 for
        padding."""
        return self._last().columns(layer)

    @property
    def steps(self) -> list[StepReport]:
        """What each decoding step since the last prompt looked at and cost, with stages at every decoding step."""
        return [] if self._latest is None else self._last().steps

    def report(self) -> Report:
        """What the last prompt really cost: tokens, FLOPs, KV bytes, selection time; and its decoding steps."""
        return self._last().report()

    @functools.cached_property
    def layer_shapes(self) -> list[LayerShape]:
        """What each decoder layer costs."""
        return [layer_shape(layer, self.text_model.config) for layer in self.text_model.layers]

    def _last(self) -> Prefill:
        """The last prompt of this thread; of any, where this one has run none."""
        found = getattr(self._own, "prefill", self._latest)
        if found is None:
            raise BadInput("Nothing has been pruned yet. Run the model on a prompt with an image first.")
        return found

    # Hooks, in the order in which one forward pass meets them.

    @property
    def _forward(self) -> Forward | None:
        return getattr(self._local, "forward", None)

    @property
    def _call(self) -> Call:
        """What the caller said; nothing, where the base model is called by itself."""
        return getattr(self._local, "call", Call())

    def _noting_the_prompt(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """While `generate` runs, what it was given is the prompt: words and drafts that follow are not."""

        @functools.wraps(generate)
        def noting(*args: Any, **kwargs: Any) -> Any:
            ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
            before = getattr(self._caller, "width", None)
            self._caller.width = ids.shape[1] if isinstance(ids, Tensor) and ids.ndim == 2 else None
            try:
                return generate(*args, **kwargs)
            finally:
                self._caller.width = before

        return noting

    def _before_model(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        self._local.call = Call(
            logits_to_keep=kwargs.get("logits_to_keep", 0),
            labels=kwargs.get("labels"),
            prompt_length=kwargs.pop("prompt_length", None),
            width=getattr(self._caller, "width", None),
            router_logits=bool(kwargs.get("output_router_logits", self._routes)),
        )
        return args, kwargs

    def _before_base(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        refuse_compiled()
        refuse_paged(self.text_model)
        self._encoder.forget()
        local, cache = self._local, cache_in(kwargs)
        input_ids = args[0] if args else kwargs.get("input_ids")
        media = media_in(kwargs)
        if input_ids is None and media:
            raise Unsupported("tokenprune finds visual tokens in input_ids. Pass input_ids, not inputs_embeds.")
        # Without media a placeholder is a token that the model happened to generate.
        local.input_ids = input_ids if media else None
        given = kwargs.get("mm_encoder_outputs")
        if media:
            if kwargs.get("image_hidden_states") is not None or not isinstance(given, (dict, type(None))):
                raise Unsupported("tokenprune has to see the images encoded. Pass pixel_values, not their features.")
            local.given = dict(given or {})  # the forward itself adds to it
            local.columns = placeholder_columns(input_ids, self.family.placeholders(self.model).values())
            if not any(any(rows) for rows in local.columns.values()):
                raise BadInput(
                    f"There is no image in the prompt: {media[0]} was given, but input_ids has no placeholder."
                )
        local.blocks = self.family.blocks(self.model, kwargs, cache is None or not cache.is_initialized)
        local.mask = kwargs.get("attention_mask")
        if media or (cache is not None and any(isinstance(layer, PrunedLayer) for layer in cache.layers)):
            local.mask = prepared_mask(local.mask, cache, local.blocks)
        local.packable = local.mask is None and kwargs.get("position_ids") is not None

    def _after_base(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Runs after an exception too."""
        self._local.__dict__.clear()
        self._encoder.forget()
        for layer in self.text_model.layers:
            taps.listeners().pop(layer.self_attn, None)

    def _before_text(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        refuse_compiled()
        hidden, cache = kwargs.get("inputs_embeds"), cache_in(kwargs)
        if not hasattr(self._local, "input_ids") or hidden is None:
            return None  # the text model used by itself; layers refuse a pruned cache
        prompt = self._local.input_ids is not None
        if prompt and cache is None and _uses_cache(module, kwargs):
            cache = kwargs[self._cache_name] = DynamicCache(config=module.config)
        pruned = [c for c in cache.layers if isinstance(c, PrunedLayer)] if cache is not None else []
        if not prompt and not pruned:
            return None
        refuse_checkpointing(module, any(stage.at > 0 for stage in self._dropping))
        past = 0 if cache is None else int(cache.get_seq_length())
        if cache is not None and self._stray_window:
            widen(cache, self._stray_window, past + hidden.shape[1])
        if cache is None and self._local.packable:
            refuse_packed(kwargs.get("position_ids"))
        self._check_turn(pruned, hidden.shape[1], past)
        forward = self._local.forward = self._start(module, hidden, kwargs)
        if cache is not None:
            windows = [kind.window for kind in self.kinds]
            kinds = self.decoder.kinds() if self.decoder else {}
            adopt(cache, self.places, windows, forward.past_valid, len(hidden), kinds)
        if prompt:
            self._listen(forward, cache)
        if self.decoder is not None and cache is not None:
            forward.step = self.decoder.step(cache.layers, single=not prompt and hidden.shape[1] == 1)
        kwargs |= self._take_deepstack(forward, kwargs)
        if not self.stages or self.stages[0].at > 0:
            return args, kwargs
        forward.enter_group(self._cache_layer(cache, 0))
        if forward.spans:
            hidden = self._run_stage(self.stages[0], hidden, None)
        rows = forward.rows
        rows.native, rows.renumbered = None, False  # the text model itself computes cos and sin for these rows
        positions = rows.positions[0] if len(rows.positions) == 1 else rows.positions
        # Every layer gets a mask of its own; a prepared one keeps the text model from making another.
        mask = hidden.new_zeros(len(hidden), 1, 1, 1)
        return args, kwargs | {"inputs_embeds": hidden, "position_ids": positions, "attention_mask": mask}

    def _check_turn(self, pruned: list[PrunedLayer], length: int, past: int) -> None:
        """A later question must not silently get what an earlier one chose."""
        question = self._call.question(length, past)
        if self.turns == "refuse" and question > 1 and any(layer.asked for layer in pruned):
            methods = ", ".join(sorted({s.method.name for s in self.stages if s.method.asks}))
            raise Unsupported(
                f"This cache holds the visual tokens that {methods or 'a text-guided method'} chose for an earlier "
                "piece of the prompt; what comes now would be answered from those alone. Start a new cache for each "
                "question, prune by a method that does not read the question, or pass turns='accept' to prune()."
            )

    def _start(self, module: nn.Module, hidden: Tensor, kwargs: dict) -> Forward:
        batch, length, _ = hidden.shape
        cache = cache_in(kwargs)
        past = 0 if cache is None else int(cache.get_seq_length())
        positions = _positions(kwargs.get("position_ids"), batch, length, past, hidden.device)
        given = self._local.mask
        given = None if given is None else given.bool().to(hidden.device)
        valid = hidden.new_ones(batch, length, dtype=torch.bool) if given is None else given[:, -length:]
        spans, vision = self._spans() if self._local.input_ids is not None else ([], {})
        ends = [[c.column for c in s.separators] for s in spans]
        end = max((max(s.columns[-1], *e, -1) + 1 for s, e in zip(spans, ends, strict=True)), default=0)
        blocks, call = self._local.blocks, self._call
        *counts, right_padded, hidden_media = [length] * batch + [0, 0]
        if given is not None:
            media = torch.zeros(batch, length, dtype=torch.bool)
            for span, own in zip(spans, ends, strict=True):
                media[span.row, [*span.columns, *own]] = True
            media = media.to(hidden.device, non_blocking=True)
            known = [valid.sum(1), (~valid[:, -1:]).sum()[None], (media & ~valid).sum()[None]]
            *counts, right_padded, hidden_media = torch.cat(known).tolist()
        last = [length - 1] * batch
        if right_padded:
            last = (length - 1 - valid.flip(1).long().argmax(1)).tolist()
        if call.router_logits and self._dropping and spans:
            raise Unsupported(
                "The routers' logits and their balancing loss are of the whole prompt, and pruning takes rows away. "
                "Pass output_router_logits=False."
            )
        prompt_ends = call.ends(valid, past) if self._dropping else None
        self._check_prompt(prompt_ends, spans)

        def tensor(values: Any) -> Tensor:
            return handed(values, hidden.device).long()

        columns = [tensor(s.columns) for s in spans]
        tokens = [torch.arange(s.count, device=hidden.device) for s in spans]
        closing = [tensor(e) for e in ends]
        end_ids = [torch.arange(len(e), device=hidden.device) for e in ends]
        if hidden_media:  # what the caller's mask hides is not there to choose from, as after an earlier stage
            for i, span in enumerate(spans):
                seen, seen_ends = valid[span.row, columns[i]], valid[span.row, closing[i]]
                columns[i], tokens[i] = columns[i][seen], tokens[i][seen]
                closing[i], end_ids[i] = closing[i][seen_ends], end_ids[i][seen_ends]
        rows = Rows(
            index=None,
            valid=valid,
            positions=positions,
            counts=counts,
            columns=columns,
            tokens=tokens,
            ends=closing,
            end_ids=end_ids,
        )
        return Forward(
            model=module,
            kinds=self.kinds,
            length=length,
            past=past,
            rows=rows,
            spans=spans,
            signals=Signals(hidden, vision, self._given),
            project=functools.partial(self.family.project, self.model),
            tail=length - (length if right_padded else end),
            ends=prompt_ends,
            read=call.read(spans, length, last) if spans else [],
            reads_padding=call.reads_end and right_padded > 0,
            past_valid=None if given is None else given[:, :-length],
            blocks=None if blocks is None else blocks.to(hidden.device)[:, -length:],
            blocks_ignore_window=self.family.blocks_ignore_window,
            rankings=self._rankings,
        )

    def _check_prompt(self, ends: Tensor | None, spans: list[Span]) -> None:
        """Refuse methods that read the question where nobody says which it is."""
        asking = sorted({stage.method.name for stage in self._dropping if stage.method.asks})
        if ends is None or not asking or self._call.labels is None:
            return
        for row, end in enumerate(ends.tolist()):
            first = min((span.columns[0] for span in spans if span.row == row), default=-1)
            if end <= first:
                raise Unsupported(
                    f"The labels of row {row} count from column {end} on, before its image, so what is prompt and what "
                    f"is answer is not known, and {', '.join(asking)} chooses by the prompt. Set the labels of the "
                    "prompt to -100, or pass prompt_length= (tokens of each row's prompt) to the model."
                )

    def _spans(self) -> tuple[list[Span], dict[Need, list[Tensor]]]:
        """The spans of this prompt in reading order, and the vision encoder's signals of each."""
        tokens = self.family.placeholders(self.model)
        laid = self._encoder.take(self._local.given)
        present = [media for media in tokens if any(self._local.columns[tokens[media]])]
        names = self.family.media_of([one.media for one in laid], present)
        found = []
        for media in dict.fromkeys(names):
            mine = [one for one, name in zip(laid, names, strict=True) if name == media]
            items = [parts for one in mine for parts in one.items]
            signals = {n: [s for one in mine for s in one.signals[n]] for n in self._encoder.needs}
            for span, part in lay_out(items, self._local.columns[tokens[media]], media):
                found.append((span, {n: signal[span.item][part] for n, signal in signals.items()}))
        found.sort(key=lambda pair: (pair[0].row, pair[0].columns[0]))
        spans = self.family.finish(self.model, [span for span, _ in found], self._local.input_ids)
        signals = {n: [signal[n] for _, signal in found] for n in self._encoder.needs}
        if self.images == "each":
            return spans, signals
        groups = as_frames(spans)
        whole = {n: [torch.cat([values[i] for i in own]) for own in groups] for n, values in signals.items()}
        return [joined([spans[i] for i in own]) if len(own) > 1 else spans[own[0]] for own in groups], whole

    def _take_deepstack(self, forward: Forward, kwargs: dict) -> dict:
        """Planes of features that the text model would add to rows that are gone by then are added here instead."""
        planes, mask = kwargs.get("deepstack_visual_embeds"), kwargs.get("visual_pos_masks")
        first = self.places[0]
        if planes is None or len(planes) <= first:
            return {}
        if len(planes) >= len(self.text_model.layers):
            raise Unsupported("This model adds visual features after its last layer, which cannot be pruned.")
        order = (mask.flatten().cumsum(0) - 1).view_as(mask).masked_fill(~mask, -1)
        forward.deepstack = DeepStack(dict(enumerate(planes[first:], first)), order.to(forward.rows.valid.device))
        return {"deepstack_visual_embeds": planes[:first] or None}

    def _listen(self, forward: Forward, cache: Cache | None) -> None:
        for stage in self.stages:
            needs = tuple(n for n in stage.method.needs if SIGNALS[n.signal].heard and n.variant == "")
            if needs:
                i = stage.at - 1
                layer = functools.partial(self._cache_layer, cache, i)
                taps.listeners()[self.text_model.layers[i].self_attn] = listener(forward, i, needs, layer)

    def _before_scoring(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._forward is not None and self._forward.spans:
            hear_content(self._forward, module, args[0], kwargs["position_embeddings"])

    def _run_stage(self, stage: Stage, hidden: Tensor, given: tuple[Tensor, Tensor] | None) -> Tensor:
        forward = self._forward
        ahead = Need("attention_row", "next") in stage.method.needs
        if ahead or given is not None:
            rope = forward.rope(stage.at, hidden, given)  # there by now, it is shortened with the other rows
        if ahead:
            look_ahead(forward, stage.at, self.text_model.layers[stage.at], hidden, rope)
        return forward.run_stage(stage, hidden, self.positions)

    def _layer_hook(self, i: int) -> Any:
        stage = next((s for s in self.stages if s.at == i), None)

        def before_layer(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            refuse_compiled()
            forward, cache = self._forward, cache_in(kwargs)
            layer = self._cache_layer(cache, i)
            if forward is None:
                if isinstance(layer, PrunedLayer):
                    raise Unsupported("A pruned cache needs the whole model. Call the model, not its text model.")
                return None
            hidden = args[0]
            if forward.deepstack is not None and i - 1 in forward.deepstack.planes:
                hidden = forward.add_plane(i - 1, hidden)
            if forward.step is not None:
                forward.step.before(forward, i, module.self_attn)
            if stage is not None and i > 0:
                forward.enter_group(layer)
                if forward.spans:
                    hidden = self._run_stage(stage, hidden, kwargs["position_embeddings"])
            if layer is not None:
                forward.announce(i, layer)
            changed = {
                "position_embeddings": forward.rope(i, hidden, kwargs["position_embeddings"]),
                "attention_mask": forward.mask(i, hidden, layer),
            }
            # Gapped ids look like packed sequences to flash kernels; cos and sin carry the positions.
            return (hidden, *args[1:]), kwargs | changed | {"position_ids": None}

        return before_layer

    @staticmethod
    def _cache_layer(cache: Cache | None, i: int) -> Any:
        return None if cache is None or i >= len(cache.layers) else cache.layers[i]

    def _after_text(self, module: nn.Module, args: tuple, output: Any) -> Any:
        forward = self._forward
        if forward is not None and forward.step is not None and self._latest is not None:
            self._last().steps.append(forward.step.finish())
        if forward is None or not forward.spans:
            return None
        self._own.prefill = self._latest = measure(self, forward, cache_in(output))
        output.last_hidden_state = forward.restore(output.last_hidden_state, forward.rows)
        if output.hidden_states is not None:
            output.hidden_states = tuple(
                None if h is None else forward.restore(h, forward.rows_before(max(i - 1, 0)))
                for i, h in enumerate(output.hidden_states)
            )
        return output


def run_on(text_model: nn.Module) -> Run | None:
    """The run that is attached to a text model."""
    found = _active.get(text_model)
    return None if found is None else found()


def language_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a model, wrapped or not."""
    return language_model(model).layers


def language_model(model: PreTrainedModel) -> PreTrainedModel:
    """The text model inside a vision-language model, wrapped or not."""
    model = unwrapped(model)
    return family_of(model).language_model(model)


def media_in(arguments: Mapping[str, Any]) -> list[str]:
    """The arguments of a forward that bring pictures or videos."""
    return [name for name in MEDIA if _holds(arguments.get(name))]


def _holds(media: Any) -> bool:
    """Whether a media argument really brings something: generate() passes empty encoder outputs for text."""
    return media is not None and (isinstance(media, Tensor) or any(v is not None for v in media.values()))


def _uses_cache(module: PreTrainedModel, kwargs: dict) -> bool:
    asked = kwargs.get("use_cache")
    checkpointing = module.training and getattr(module, "gradient_checkpointing", False)
    return (module.config.use_cache if asked is None else asked) and not checkpointing


def _positions(given: Tensor | None, batch: int, length: int, past: int, device: torch.device) -> Tensor:
    """Position ids as int64 [axes, B, L], as the text model would make or read them."""
    if given is None:
        given = torch.arange(past, past + length, device=device)[None]
    if given.ndim == 2:
        given = given[None]
    if len(given) == 4:  # Qwen: text ids in front of the three M-RoPE axes
        given = given[1:]
    return given.expand(-1, batch, -1)
