"""A pruned model: puts the hooks on, runs the stages, takes everything off again."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from tokenprune.attach import taps
from tokenprune.attach.cache import PrunedLayer, adopt
from tokenprune.attach.forward import Forward, Rows, placeholder_runs
from tokenprune.attach.report import Report, measure
from tokenprune.attach.vision import SaliencyReader
from tokenprune.errors import BadInput, Unsupported, unknown
from tokenprune.families.base import Span
from tokenprune.families.registry import family_of
from tokenprune.methods.stage import Stage

POSITIONS = ("original", "compact")
MEDIA = ("pixel_values", "pixel_values_videos", "mm_encoder_outputs")
_active: weakref.WeakKeyDictionary[nn.Module, Run] = weakref.WeakKeyDictionary()


class Run:
    """A model with pruners attached. `remove()` (or leaving the `with` block) restores the model exactly."""

    def __init__(self, model: PreTrainedModel, stages: Sequence[Stage], positions: str = "original") -> None:
        if positions not in POSITIONS:
            raise unknown("positions", positions, POSITIONS)
        self.family = family_of(model)
        self.model = model
        self.text_model = self.family.language_model(model)
        self.stages = sorted(stages, key=lambda s: s.at)
        self.positions = positions
        self._check_stages()
        if self.text_model in _active:
            raise Unsupported("This model is already pruned. Call remove() on the first run, or leave its with block.")
        self._local = threading.local()
        self._done: tuple[list[list[Tensor]], list[Span], Report] | None = None
        self._handles: list[Any] = []
        needs = {need for stage in self.stages for need in stage.method.needs}
        variants = sorted(need.variant for need in needs if need.signal == "saliency")
        self._saliency = SaliencyReader(model, self.family, variants) if variants else None
        self._tapped = any(need.signal in ("saliency", "attention_row") for need in needs)
        self._attach()

    def _check_stages(self) -> None:
        layers = len(self.text_model.layers)
        if not self.stages:
            raise BadInput("No stages. Give a method name, a method or a list of Stage.")
        places = [s.at for s in self.stages]
        if len(set(places)) < len(places):
            raise BadInput(f"Two stages stand at the same layer (at={places}). Give each its own.")
        if places[-1] >= layers:
            raise BadInput(f"at={places[-1]} is past the last layer: this model has layers 0 to {layers - 1}.")

    def _attach(self) -> None:
        _active[self.text_model] = self
        if self._tapped:
            taps.install()
        base = self.family.base(self.model)
        put = self._handles.append
        if self.model is not base:
            put(self.model.register_forward_pre_hook(self._before_model, with_kwargs=True, prepend=True))
        put(base.register_forward_pre_hook(self._before_base, with_kwargs=True))
        put(base.register_forward_hook(self._after_base, always_call=True))
        put(self.text_model.register_forward_pre_hook(self._before_text, with_kwargs=True))
        put(self.text_model.register_forward_hook(self._after_text))
        for i, layer in enumerate(self.text_model.layers):
            if i >= self.stages[0].at:
                put(layer.register_forward_pre_hook(self._layer_hook(i), with_kwargs=True))
        if self._saliency:
            self._handles += self._saliency.hooks()

    def remove(self) -> None:
        """Take everything off: hooks, taps, this run's mark on the model. Calling it again does nothing."""
        if _active.get(self.text_model) is not self:
            return
        del _active[self.text_model]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._tapped:
            taps.uninstall()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    @property
    def kept(self) -> list[list[Tensor]]:
        """For each stage, for each row of the last prompt: ascending int64 prompt columns of the visual tokens that are
        still there (0-based, padding counted)."""
        return self._last()[0]

    @property
    def spans(self) -> list[Span]:
        """The images and videos of the last prompt: row, first column and grid of each."""
        return self._last()[1]

    def report(self) -> Report:
        """What the last prompt really cost: tokens, FLOPs, KV bytes, selection time."""
        return self._last()[2]

    def _last(self) -> tuple[list[list[Tensor]], list[Span], Report]:
        if self._done is None:
            raise BadInput("Nothing has been pruned yet. Run the model on a prompt with an image first.")
        return self._done

    # Hooks, in the order in which one forward pass meets them.

    @property
    def _forward(self) -> Forward | None:
        return getattr(self._local, "forward", None)

    def _before_model(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        keep = kwargs.get("logits_to_keep", 0)
        self._local.logits_to_keep = keep if isinstance(keep, int) else 0

    def _before_base(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if _compiled():
            raise Unsupported(
                "A compiled model cannot be pruned: the signals are lost in the trace. Do not compile it."
            )
        mask = kwargs.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise Unsupported("tokenprune needs a 2-D attention_mask [batch, tokens] (or none), not a prepared mask.")
        input_ids = args[0] if args else kwargs.get("input_ids")
        media = [k for k in MEDIA if _holds(kwargs.get(k))]
        if input_ids is None and (media or _is_new(kwargs)):
            raise Unsupported("tokenprune finds visual tokens in input_ids. Pass input_ids, not inputs_embeds.")
        # Without media a placeholder is a token that the model happened to generate.
        placeholders = self.family.placeholders(self.model)
        self._local.runs = placeholder_runs(input_ids, placeholders.values()) if media else []
        if media and not self._local.runs:
            raise BadInput(f"There is no image in the prompt: {media[0]} was given, but input_ids has no placeholder.")

    def _after_base(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Runs after an exception too."""
        self._local.__dict__.clear()
        if output is None and self._saliency:
            self._saliency.forget()
        for layer in self.text_model.layers:
            taps.listeners().pop(layer.self_attn, None)

    def _before_text(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        hidden, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        runs = getattr(self._local, "runs", None)
        if runs is None or hidden is None:
            return None  # the text model used by itself; layers refuse a pruned cache
        if runs and cache is None and _uses_cache(module, kwargs):
            cache = kwargs["past_key_values"] = DynamicCache(config=module.config)
        pruned = cache is not None and any(isinstance(layer, PrunedLayer) for layer in cache.layers)
        if not runs and not pruned:
            return None
        forward = self._local.forward = self._start(module, hidden, kwargs, runs)
        if cache is not None:
            adopt(cache, self.stages[0].at, len(module.layers), forward.past_valid)
        if runs:
            self._listen(forward, cache)
        if self.stages[0].at > 0:
            return args, kwargs
        forward.enter_group(self._cache_layer(cache, 0))
        if runs:
            hidden = forward.run_stage(self.stages[0], hidden, self.positions)
        rows = forward.rows = _as_native(forward.rows)
        logical = 0 if cache is None else cache.get_seq_length()
        mask = torch.ones(rows.valid.shape[0], logical + rows.length, dtype=torch.long, device=hidden.device)
        positions = rows.positions[0] if len(rows.positions) == 1 else rows.positions
        return args, kwargs | {"inputs_embeds": hidden, "position_ids": positions, "attention_mask": mask}

    def _start(self, module: nn.Module, hidden: Tensor, kwargs: dict, runs: list) -> Forward:
        batch, length, _ = hidden.shape
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        positions = _positions(kwargs.get("position_ids"), batch, length, past, hidden.device)
        given = kwargs.get("attention_mask")
        given = None if given is None else given.bool().to(hidden.device)
        valid = hidden.new_ones(batch, length, dtype=torch.bool) if given is None else given[:, -length:]
        spans = self.family.spans(self.model, runs, positions) if runs else []
        columns = [torch.arange(s.start, s.start + s.count, device=hidden.device) for s in spans]
        *counts, right_padded = [length] * batch + [0]
        if given is not None:
            *counts, right_padded = torch.cat([valid.sum(1), (~valid[:, -1:]).sum()[None]]).tolist()
        end = length if right_padded else max((s.start + s.count for s in spans), default=0)
        return Forward(
            model=module,
            length=length,
            rows=Rows(None, valid, positions, counts, columns),
            spans=spans,
            tail=length - end,
            logits_to_keep=getattr(self._local, "logits_to_keep", 0),
            past_valid=None if given is None else given[:, :-length],
            saliency=self._saliency.take(spans, batch) if self._saliency and spans else {},
        )

    def _listen(self, forward: Forward, cache: Cache | None) -> None:
        for stage in self.stages:
            if any(need.signal == "attention_row" for need in stage.method.needs):
                before = stage.at - 1
                module = self.text_model.layers[before].self_attn

                def listen(query: Tensor, key: Tensor, scaling: float, before: int = before) -> None:
                    layer = None if cache is None else cache.layers[before]
                    visible = forward.visible(layer, key.shape[2])
                    forward.attention = taps.row_attention(query, key, forward.query_rows(), visible, scaling)

                taps.listeners()[module] = listen

    def _layer_hook(self, i: int) -> Any:
        stage = next((s for s in self.stages if s.at == i), None)

        def before_layer(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            forward, cache = self._forward, kwargs.get("past_key_values")
            layer = self._cache_layer(cache, i)
            if forward is None:
                if isinstance(layer, PrunedLayer):
                    raise Unsupported("A pruned cache needs the whole model. Call the model, not its text model.")
                return None
            hidden = args[0]
            if stage is not None and i > 0:
                forward.rope(hidden, kwargs["position_embeddings"])
                forward.enter_group(layer)
                if forward.spans:
                    hidden = forward.run_stage(stage, hidden, self.positions)
            rope = forward.rope(hidden, kwargs["position_embeddings"])
            changed = {"position_embeddings": rope, "attention_mask": forward.mask(hidden, layer)}
            if layer is not None:
                forward.announce(layer)
            # Gapped ids look like packed sequences to flash kernels; cos and sin carry the positions.
            return (hidden, *args[1:]), kwargs | changed | {"position_ids": None}

        return before_layer

    @staticmethod
    def _cache_layer(cache: Cache | None, i: int) -> Any:
        return None if cache is None or i >= len(cache.layers) else cache.layers[i]

    def _after_text(self, module: nn.Module, args: tuple, output: Any) -> Any:
        forward = self._forward
        if forward is None or not forward.spans:
            return None
        self._done = forward.kept, forward.spans, measure(self, forward, output.past_key_values)
        output.last_hidden_state = forward.restore(output.last_hidden_state, forward.rows)
        if output.hidden_states is not None:
            output.hidden_states = tuple(
                forward.restore(h, forward.rows_before(max(i - 1, 0))) for i, h in enumerate(output.hidden_states)
            )
        return output


def _compiled() -> bool:
    """Inside torch.compile: while tracing, and between the graphs that a hook breaks the trace into."""
    return torch.compiler.is_compiling() or torch._C._dynamo.eval_frame.get_eval_frame_callback() is not None


def _holds(media: Any) -> bool:
    """Whether a media argument really brings something: generate() passes empty encoder outputs for text."""
    return media is not None and (isinstance(media, Tensor) or any(v is not None for v in media.values()))


def _is_new(kwargs: dict) -> bool:
    cache = kwargs.get("past_key_values")
    return cache is None or cache.get_seq_length() == 0


def _uses_cache(module: PreTrainedModel, kwargs: dict) -> bool:
    asked = kwargs.get("use_cache")
    checkpointing = module.training and getattr(module, "gradient_checkpointing", False)
    return (module.config.use_cache if asked is None else asked) and not checkpointing


def _as_native(rows: Rows) -> Rows:
    rows.native = True
    return rows


def _positions(given: Tensor | None, batch: int, length: int, past: int, device: torch.device) -> Tensor:
    """Position ids as int64 [axes, B, L], as the text model would make or read them."""
    if given is None:
        given = torch.arange(past, past + length, device=device)[None]
    if given.ndim == 2:
        given = given[None]
    if len(given) == 4:  # Qwen: text ids in front of the three M-RoPE axes
        given = given[1:]
    return given.expand(-1, batch, -1)
