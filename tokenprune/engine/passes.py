"""What one pass of a pruned model goes through: the hooks of its modules, in the order in which it meets them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, StaticLayer

from tokenprune.core.trace import Ranking
from tokenprune.engine import compiled
from tokenprune.engine.cache import CACHE_NAMES, PrunedLayer, adopt, cache_in, cache_name, widen
from tokenprune.engine.decode_steps import DecodeStep
from tokenprune.engine.encoder_reader import EncoderReader, Laid, need_of_stage
from tokenprune.engine.encoder_stages import EncoderStages
from tokenprune.engine.forward import DeepStack, Forward
from tokenprune.engine.layer_inputs import LayerInputs, Piece, position_axes
from tokenprune.engine.listen import listener, tap_ahead, tap_unrotated
from tokenprune.engine.masks import stray_window
from tokenprune.engine.overrides import Hook, Overrides
from tokenprune.engine.padding import Padding
from tokenprune.engine.prompt import Call, Prompt
from tokenprune.engine.refuse import (
    refuse_checkpointing,
    refuse_later_question,
    refuse_packed,
    refuse_paged,
    refuse_unknown_question,
)
from tokenprune.engine.report import Prefill, measure
from tokenprune.engine.setup import Setup
from tokenprune.engine.token_state import TokenState
from tokenprune.errors import BadInput, Unsupported
from tokenprune.families.base import Span
from tokenprune.methods.stage import Stage
from tokenprune.signals import taps
from tokenprune.signals.need import Need
from tokenprune.signals.table import AHEAD, BEFORE, UNROTATED, taps_for

# What a text model or a layer is given and the engine makes anew.
GIVEN = {"inputs_embeds", "position_ids", "position_embeddings", "attention_mask", "visual_pos_masks", *CACHE_NAMES}


class _Now(threading.local):
    """What this thread's pass has come to; clearing it brings the defaults back."""

    call: Call = Call()  # nothing was said, where the base model is called by itself
    prompt: Prompt | None = None
    forward: Forward | None = None
    step: DecodeStep | None = None


class Passes:
    """The hooks, what each thread's pass has come to, and the last prompt."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.given: dict[str, list[Tensor]] = {}
        self.rankings: list[Ranking] | None = None
        self.latest: Prefill | None = None
        # Of each thread: the pass that runs, what its caller said, whether the run is lifted, and the last prompt.
        self._now, self._caller, self._lifted, self._own = _Now(), *(threading.local() for _ in range(3))
        self._handles: list[RemovableHandle] = []
        self._calls, self._base = Overrides(setup.model), Overrides(setup.family.base(setup.model))
        self._cache_name = cache_name(setup.text_model)
        self._stray_window = stray_window(setup.text_model)
        self._routes = getattr(setup.text_model.config, "output_router_logits", False)
        stages = EncoderStages(setup.model, setup.family, setup.encoder_stages, self._encodes)
        self.encoder = EncoderReader(setup.model, setup.family, setup.encoder_needs, stages, lambda: self.is_lifted)

    def attach(self) -> None:
        """Put the hooks on."""
        self.encoder.attach()
        if hasattr(self.setup.model, "generate"):
            self._calls.wrap("generate", self._noting_the_prompt)
            self._calls.wrap("get_compiled_call", compiled.wrapping(self.setup, self.lift))
        self._base.wrap("forward", compiled.noticed)
        base: Any = self._base.module
        put, live = self.hold, self._unless_lifted
        put(self.setup.model.register_forward_pre_hook(live(self._before_model), with_kwargs=True, prepend=True))
        put(base.register_forward_pre_hook(live(self._before_base, compiled.as_it_is), with_kwargs=True))
        put(base.register_forward_hook(live(self._after_base), always_call=True))
        text_model = self.setup.text_model
        put(text_model.register_forward_pre_hook(live(self._before_text, compiled.before_text), with_kwargs=True))
        put(text_model.register_forward_hook(live(self._after_text, compiled.after_text)))
        for i, layer in enumerate(text_model.layers):
            if i >= self.setup.stage_layers[0]:
                before_layer = functools.partial(compiled.before_layer, i)
                put(layer.register_forward_pre_hook(live(self._layer_hook(i), before_layer), with_kwargs=True))
            for stage in self.setup.layer_stages:
                if stage.at == i + 1 and taps_for(stage.method.needs, UNROTATED):
                    put(layer.register_forward_pre_hook(live(self._before_unrotated(stage)), with_kwargs=True))

    def detach(self) -> None:
        """Take them off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.encoder.detach()
        self._calls.undo()
        self._base.undo()

    def hold(self, handle: RemovableHandle) -> None:
        """Keep the handle of a hook that goes with these."""
        self._handles.append(handle)

    @contextmanager
    def lift(self, encoder: bool = False) -> Iterator[None]:
        """While this is open, nothing is pruned in this thread; encoder: but before and inside the vision encoder."""
        before = self.is_lifted, getattr(self._lifted, "encodes", False)
        self._lifted.now, self._lifted.encodes = True, encoder
        try:
            yield
        finally:
            self._lifted.now, self._lifted.encodes = before

    @property
    def is_lifted(self) -> bool:
        """Whether nothing is pruned in this thread for the time."""
        return getattr(self._lifted, "now", False)

    def _encodes(self) -> bool:
        return not self.is_lifted or self._lifted.encodes

    def _unless_lifted(self, hook: Callable[..., Any], traced: Callable[..., Any] | None = None) -> Callable[..., Any]:
        return Hook(compiled.hook_or_step(self._lifted, hook, traced))

    def last(self) -> Prefill:
        """The last prompt of this thread; of any, where this one has run none."""
        found = getattr(self._own, "prefill", self.latest)
        if found is None:
            raise BadInput("Nothing has been pruned yet. Run the model on a prompt with an image first.")
        return found

    def _noting_the_prompt(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """While `generate` runs, what it was given is the prompt: words and drafts that follow are not."""

        @functools.wraps(generate)
        def noting(*args: Any, **kwargs: Any) -> Any:
            ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
            before = getattr(self._caller, "width", None)
            self._caller.width = ids.shape[1] if isinstance(ids, Tensor) and ids.ndim == 2 else None
            try:
                with nullcontext() if self.is_lifted else compiled.own_length(self.setup.model):
                    return generate(*args, **kwargs)
            finally:
                self._caller.width = before

        return noting

    def _before_model(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        self._now.call = Call(
            logits_to_keep=kwargs.get("logits_to_keep", 0),
            labels=kwargs.get("labels"),
            prompt_length=kwargs.pop("prompt_length", None),
            width=getattr(self._caller, "width", None),
            router_logits=bool(kwargs.get("output_router_logits", self._routes)),
        )
        return args, kwargs

    def _before_base(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        refuse_paged(self.setup.text_model)
        self.encoder.forget()
        self._now.prompt = Prompt.read(self.setup.family, self.setup.model, args, kwargs)

    def _after_base(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Runs after an exception too."""
        self._now.__dict__.clear()
        self.encoder.forget()
        listeners = taps.listeners()
        for layer in self.setup.text_model.layers if listeners else ():
            if hasattr(layer, "self_attn"):
                listeners.pop(layer.self_attn, None)

    def _before_text(self, module: PreTrainedModel, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        now, hidden, cache = self._now, kwargs.get("inputs_embeds"), cache_in(kwargs)
        if now.prompt is None or hidden is None:
            return None  # the text model used by itself; layers refuse a pruned cache
        has_media = now.prompt.has_media
        if has_media and cache is None and _uses_cache(module, kwargs):
            cache = kwargs[self._cache_name] = DynamicCache(config=module.config)
        pruned = [c for c in cache.layers if isinstance(c, PrunedLayer)] if cache is not None else []
        if not has_media and not pruned:
            return None
        refuse_checkpointing(module, any(stage.layer > 0 for stage in self.setup.dropping))
        past = 0 if cache is None else int(cache.get_seq_length())
        if cache is not None and self._stray_window:
            widen(cache, self._stray_window, past + hidden.shape[1])
        if cache is None and now.prompt.packable:
            refuse_packed(kwargs.get("position_ids"))
        if self.setup.policies.turns == "refuse" and now.call.question(hidden.shape[1], past) > 1:
            refuse_later_question(pruned, self.setup.stages)
        forward = now.forward = self._begin(now.prompt, hidden, kwargs.get("position_ids"), past)
        if cache is not None:
            windows = [kind.window for kind in self.setup.layer_kinds]
            kinds = self.setup.decoding.cache_layers() if self.setup.decoding else {}
            adopt(cache, self.setup.stage_layers, windows, forward.piece.past_valid, len(hidden), kinds)
        if has_media:
            self._listen(forward, cache)
        if self.setup.decoding is not None and cache is not None:
            now.step = self.setup.decoding.step(cache.layers, single=not has_media and hidden.shape[1] == 1)
        kwargs |= self._take_deepstack(forward, kwargs)
        first = [stage for stage in self.setup.layer_stages if stage.at == 0]
        forward.width = hidden.shape[1]
        if not self.setup.encoder_stages and not first:
            return args, kwargs | _mask_of_whole(forward, hidden, _cache_layer(cache, 0))
        forward.enter_group(_cache_layer(cache, next(i for i, kind in enumerate(self.setup.layer_kinds) if kind.keys)))
        if forward.state.spans:
            hidden = forward.enter_encoded(
                self.setup.encoder_stages, self._masks_of_encoder(forward), hidden, self.setup.policies.positions
            )
            for stage in first:
                hidden = self._run_stage(forward, stage, hidden, None)
        followed = {name: forward.inputs.follow(x, forward.width) for name, x in kwargs.items() if name not in GIVEN}
        forward.followed = [(own, kwargs[name]) for name, own in followed.items() if own is not kwargs[name]]
        forward.width = hidden.shape[1]
        forward.hand_over()
        positions = forward.state.positions[0] if len(forward.state.positions) == 1 else forward.state.positions
        # Every layer gets a mask of its own; a prepared one keeps the text model from making another.
        mask = hidden.new_zeros(len(hidden), 1, 1, 1)
        return args, kwargs | followed | {"inputs_embeds": hidden, "position_ids": positions, "attention_mask": mask}

    def _masks_of_encoder(self, forward: Forward) -> list[list[Tensor]]:
        """For each stage before or inside the encoder, for each span bool [n]: which tokens it left."""
        return [forward.vision[need_of_stage(number)] for number in range(len(self.setup.encoder_stages))]

    def _begin(self, prompt: Prompt, hidden: Tensor, position_ids: Tensor | None, past: int) -> Forward:
        call = self._now.call
        spans: list[Span] = []
        vision: dict[Need, list[Tensor]] = {}
        laid: list[Laid] = []
        if prompt.has_media:
            laid = self.encoder.take(prompt.encoder_outputs)
            spans, vision = prompt.spans(
                self.setup.family, self.setup.model, laid, self.encoder.known, self.setup.policies.images
            )
        if call.router_logits and self.setup.dropping and spans:
            raise Unsupported(
                "The routers' logits and their balancing loss are of the whole prompt, and pruning takes rows away. "
                "Pass output_router_logits=False."
            )
        given = None if prompt.mask is None else prompt.mask.bool().to(hidden.device)
        padding = Padding.of(given, hidden, spans)
        ends = call.ends(padding.valid, past) if self.setup.dropping else None
        if ends is not None and call.labels is not None:
            refuse_unknown_question(ends, spans, self.setup.dropping)
        batch, length, _ = hidden.shape
        positions = position_axes(position_ids, batch, length, past, hidden.device, self.setup.text_model)
        state = TokenState.of_prompt(spans, padding.valid, positions, padding.counts, ends, padding.hides_media)
        piece = Piece(
            model=self.setup.text_model,
            kinds=self.setup.layer_kinds,
            length=length,
            past=past,
            tail=0 if padding.on_the_right else length - _end(spans),
            past_valid=None if given is None else given[:, :-length],
            blocks=None if prompt.blocks is None else prompt.blocks.to(hidden.device)[:, -length:],
            blocks_ignore_window=self.setup.family.blocks_ignore_window,
            block_layers=self.setup.family.block_layers,
        )
        return Forward(
            inputs=LayerInputs(piece, state),
            embeds=hidden,
            vision=vision,
            given=self.given,
            project=functools.partial(self.setup.family.project, self.setup.model),
            read=call.read(spans, length, padding.last) if spans else [],
            reads_padding=call.reads_end and padding.on_the_right,
            rankings=self.rankings,
            encoded=[one.work for one in laid if one.work is not None],
        )

    def _take_deepstack(self, forward: Forward, kwargs: dict) -> dict:
        """Planes of features that the text model would add to rows that are gone by then are added here instead."""
        planes, first = kwargs.get("deepstack_visual_embeds"), self.setup.stage_layers[0]
        if planes is None or len(planes) <= first:
            return {}
        mask: Tensor = kwargs["visual_pos_masks"]
        if len(planes) >= len(self.setup.text_model.layers):
            raise Unsupported("This model adds visual features after its last layer, which cannot be pruned.")
        order = (mask.flatten().cumsum(0) - 1).view_as(mask).masked_fill(~mask, -1)
        forward.deepstack = DeepStack(dict(enumerate(planes[first:], first)), order.to(forward.state.valid.device))
        return {"deepstack_visual_embeds": planes[:first] or None}

    def _listen(self, forward: Forward, cache: Cache | None) -> None:
        for stage in self.setup.layer_stages:
            wanted = taps_for(stage.method.needs, BEFORE)
            if wanted:
                i = stage.at - 1
                layer = functools.partial(_cache_layer, cache, i)
                taps.listeners()[self.setup.text_model.layers[i].self_attn] = listener(forward, i, wanted, layer)

    def _before_unrotated(self, stage: Stage) -> Callable[..., None]:
        wanted = taps_for(stage.method.needs, UNROTATED)

        def before_layer(module: nn.Module, args: tuple, kwargs: dict) -> None:
            forward = self._now.forward
            if forward is not None and forward.state.spans:
                tap_unrotated(forward, wanted, module, args[0], kwargs["position_embeddings"])

        return before_layer

    def _run_stage(self, forward: Forward, stage: Stage, hidden: Tensor, given: tuple[Tensor, Tensor] | None) -> Tensor:
        wanted = taps_for(stage.method.needs, AHEAD)
        if wanted:
            rope = forward.inputs.rope(stage.at, hidden, given)
            tap_ahead(forward, stage.at, wanted, self.setup.text_model.layers[stage.at], hidden, rope)
        return forward.run_stage(stage, hidden, self.setup.policies.positions, given)

    def _layer_hook(self, i: int) -> Any:
        stage = next((s for s in self.setup.layer_stages if s.at == i), None)
        keys = self.setup.layer_kinds[i].keys

        def before_layer(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            now, cache = self._now, cache_in(kwargs)
            forward, layer = now.forward, _cache_layer(cache, i)
            if forward is None:
                if isinstance(layer, PrunedLayer):
                    raise Unsupported("A pruned cache needs the whole model. Call the model, not its text model.")
                return None
            hidden, given = args[0], kwargs.get("position_embeddings")
            if forward.deepstack is not None:
                hidden = forward.add_plane(i - 1, hidden)
            if now.step is not None and now.step.prepare(i, module.self_attn):
                forward.enter_group(layer)
            if stage is not None and i > 0:
                forward.enter_group(layer)
                if forward.state.spans:
                    hidden = self._run_stage(forward, stage, hidden, given)
            if layer is not None and keys:
                forward.announce(i, layer)
            more, changed = args[1:], {}
            if not forward.state.computed:  # whatever else it is given is of the text model's own rows
                more = tuple(forward.follow(x) for x in more)
                for name, x in kwargs.items():
                    if name not in GIVEN:
                        changed[name] = forward.follow(x)
            changed["attention_mask"] = forward.inputs.mask(i, hidden, layer) if keys else forward.inputs.padding_mask()
            if given is not None:  # some layers have no rotary embedding
                changed["position_embeddings"] = forward.inputs.rope(i, hidden, given)
            # Gapped ids look like packed sequences to flash kernels; cos and sin carry the positions.
            return (hidden, *more), kwargs | changed | {"position_ids": None}

        return before_layer

    def _after_text(self, module: nn.Module, args: tuple, output: Any) -> Any:
        forward, step = self._now.forward, self._now.step
        if step is not None and self.latest is not None:
            self.last().steps.append(step.finish())
        if forward is None or not forward.state.spans:
            return None
        self._own.prefill = self.latest = measure(
            forward,
            cache_in(output),
            self.setup.stages,
            self.setup.decoding_stages,
            self.setup.policies.positions,
            self.setup.layer_shapes,
            self.setup.model.config,
            (len(self.encoder.spared.blocks), self.encoder.spared.of),
        )
        length = forward.piece.length
        output.last_hidden_state = forward.state.restore(output.last_hidden_state, length)
        if output.hidden_states is not None:
            output.hidden_states = tuple(
                None if h is None else forward.state_before(max(i - 1, 0)).restore(h, length)
                for i, h in enumerate(output.hidden_states)
            )
        return output


def _cache_layer(cache: Cache | None, i: int) -> Any:
    return None if cache is None or i >= len(cache.layers) else cache.layers[i]


def _mask_of_whole(forward: Forward, hidden: Tensor, layer: Any) -> dict[str, Any]:
    """The mask of a single row over static layers that no stage stands before: the text model would make none, as if
    every place were filled, because the cache as a whole cannot be compiled."""
    if hidden.shape[1] > 1 or not isinstance(layer, StaticLayer):
        return {}
    return {"attention_mask": forward.inputs.whole_mask(hidden, layer)}


def _uses_cache(module: PreTrainedModel, kwargs: dict) -> bool:
    asked = kwargs.get("use_cache")
    checkpointing = module.training and getattr(module, "gradient_checkpointing", False)
    return (module.config.use_cache if asked is None else asked) and not checkpointing


def _end(spans: list[Span]) -> int:
    """The first prompt column after all spans and their separators."""
    return max((max(s.columns[-1], *(e.column for e in s.separators), -1) + 1 for s in spans), default=0)
