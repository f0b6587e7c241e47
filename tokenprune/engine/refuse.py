"""Stages and ways of running that would go wrong in silence, and the wrappers that people put around a model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin
from transformers.cache_utils import Cache, StaticLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from tokenprune.engine.cache import PrunedLayer, refuse_kinds
from tokenprune.engine.masks import layer_kinds, layers_of, same_as_causal
from tokenprune.engine.support import obstacle
from tokenprune.errors import BadInput, MissingSignal, Unsupported
from tokenprune.families.base import Family, Span
from tokenprune.methods.base import Method
from tokenprune.methods.place import Decode, EncoderPlace, Layer
from tokenprune.methods.stage import Stage

COMPILED = (
    "A compiled model cannot be pruned: each prompt keeps other tokens, which no graph can hold. Do not compile it: "
    "generate(cache_implementation='static') compiles the steps after the prompt, on a GPU by itself."
)


def check_runs(model: PreTrainedModel, family: Family, stages: Sequence[Stage]) -> None:
    """Raise what keeps stages from running on a model (not wrapped): `BadInput` for places that it does not have,
    `MissingSignal` for signals that it does not give, `Unsupported` for the way it is loaded."""
    text_model = family.language_model(model)
    inside = sorted((stage for stage in stages if isinstance(stage.place, Layer)), key=lambda stage: stage.at)
    decoding = sorted(stage.place.start for stage in stages if isinstance(stage.place, Decode))
    encoding = [(stage.method, stage.place) for stage in stages if isinstance(stage.place, EncoderPlace)]
    encoding.sort(key=lambda one: one[1].order)
    for method, place in encoding:
        _check_encoder(model, family, method, place)
    for (method, _), (_, later) in pairwise(encoding):
        if method.returns:
            raise BadInput(
                f"{method.name} brings back behind the vision encoder what it leaves out, so no stage of the encoder "
                f"can follow it, and one stands {later}. Put that before it, or at a layer of the LLM."
            )
    if inside or not (decoding or encoding):
        _check_order(inside, len(layers_of(text_model)))
    if decoding:
        _check_steps(decoding, [kind.window for kind in layer_kinds(text_model)])
    states = sorted({kind.type for kind in layer_kinds(text_model) if not kind.keys and kind.type is not None})
    if states and (decoding or any(stage.at > 0 for stage in inside)):
        raise Unsupported(
            f"This model has {', '.join(states)} layers, which have mixed every token into a state by the time that a "
            "stage between the layers, or at a decoding step, could drop it. Prune before the LLM: at=0."
        )
    for stage in inside:
        found = obstacle(family, stage.method, stage.place, model)
        if found is not None:
            raise MissingSignal(found.of(family))
    refuse_parallel(model)


def _check_encoder(model: PreTrainedModel, family: Family, method: Method, place: EncoderPlace) -> None:
    """Raise where a stage cannot stand before or inside this model's vision encoder."""
    found = obstacle(family, method, place, model)
    if found is not None:
        raise Unsupported(found.of(family))
    media = next(media for media in family.media if family.whole_encoder(model, media) is None)
    last = family.encoder_blocks(model, media).last
    if place.block > last:
        raise BadInput(
            f"{place.block} is no block of the vision encoder that leads to the features: there are 0 to {last}. Give "
            f"one of them, at='vision:{last}', say."
        )


def _check_order(stages: Sequence[Stage], layers: int) -> None:
    """Raise `BadInput` unless stages (sorted by layer) can run one after the other in a model of so many layers."""
    if not stages:
        raise BadInput("No stages. Give a method name, a method or a list of Stage.")
    layers_at = [s.at for s in stages]
    if len(set(layers_at)) < len(layers_at):
        raise BadInput(f"Two stages stand at the same layer (at={layers_at}). Give each its own.")
    if layers_at[-1] >= layers:
        raise BadInput(f"at={layers_at[-1]} is past the last layer: this model has layers 0 to {layers - 1}.")
    for before, stage in zip([None, *stages], stages, strict=False):
        waiting = before is not None and before.method.sets_aside
        if waiting and not stage.method.recalls:
            raise BadInput(
                f"The stage at {stage.at} stands between a stage that sets tokens aside and one that recalls them."
            )
        if stage.method.recalls and not waiting:
            raise BadInput(f"The stage at {stage.at} recalls tokens, but not after a stage that sets tokens aside.")
    if stages[-1].method.sets_aside:
        raise BadInput(f"The stage at {layers_at[-1]} sets tokens aside that no later stage recalls.")


def _check_steps(starts: list[int], windows: list[int | None]) -> None:
    """Raise unless stages of decoding steps can choose for these layers on, ascending. windows: of every layer, None
    for full attention."""
    if len(set(starts)) < len(starts):
        raise BadInput(f"Two stages of decoding steps have the same start ({starts}). Give each its own.")
    if starts[-1] >= len(windows):
        raise BadInput(f"start={starts[-1]} is past the last layer: this model has layers 0 to {len(windows) - 1}.")
    for start in starts:
        if windows[start - 1] is not None:
            raise Unsupported(
                f"Layer {start - 1} sees a sliding window, so it cannot choose from all visual tokens. Give a "
                "start after a layer of full attention."
            )


def unwrap(model: Any) -> PreTrainedModel:
    """The model inside a PEFT wrapper, or the part of a model that speaks which reads.

    Raises `Unsupported` for a model that is compiled, in whole or in part, and for what is no model but holds or names
    one.
    """
    if isinstance(model, (str, Path)):
        raise Unsupported(
            f"{str(model)!r} is a name, not a model. Load it first: "
            "AutoModelForImageTextToText.from_pretrained(...), or tokenprune.chat.Chat.load(...).model."
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise Unsupported(f"A {type(model).__name__} runs copies of a model. Prune the model inside it: model.module.")
    if isinstance(model, ProcessorMixin):
        raise Unsupported(f"{type(model).__name__} is a processor. Pass the model that it prepares inputs for.")
    if not isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Module):
        raise Unsupported(f"{type(model).__name__} is not a model but holds one. Prune that: its .model.")
    modules = model.modules() if isinstance(model, nn.Module) else ()
    if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in modules):
        raise Unsupported(COMPILED)
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Qwen-Omni is a thinker, which reads pictures, and what speaks.
    return inner.thinker if isinstance(getattr(inner, "thinker", None), nn.Module) else inner


def compiling() -> bool:
    """Whether this runs inside torch.compile: while tracing, and between the graphs that a hook breaks it into."""
    return torch.compiler.is_compiling() or torch._C._dynamo.eval_frame.get_eval_frame_callback() is not None


def refuse_checkpointing(text_model: PreTrainedModel, inside: bool) -> None:
    """Raise `Unsupported` where gradient checkpointing would run hooks a second time, out of order.

    inside: whether tokens are dropped between the layers.
    """
    layers = [layer for layer in layers_of(text_model) if getattr(layer, "gradient_checkpointing", False)]
    if not text_model.training or not layers:
        return
    if "__call__" in vars(GradientCheckpointingLayer):
        raise Unsupported(
            "Gradient checkpointing of a pruned model needs a newer transformers (5.23 will do): this one runs hooks "
            "again while it recomputes."
        )
    given = [getattr(layer._gradient_checkpointing_func, "keywords", None) for layer in layers]
    reentrant = any(isinstance(keywords, dict) and keywords.get("use_reentrant") is True for keywords in given)
    if inside and reentrant:
        raise Unsupported(
            "Reentrant gradient checkpointing gives wrong gradients where a stage stands between the layers. Call "
            "gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})."
        )


def refuse_packed(position_ids: Tensor | None) -> None:
    """Raise `Unsupported` where position ids (int64 [B, L], or with three more axes in front) that start anew say that
    a row holds several sequences."""
    if position_ids is None or (position_ids.ndim == 3 and len(position_ids) != 4):
        return
    text = position_ids if position_ids.ndim == 2 else position_ids[0]
    if bool((text.diff(dim=-1) != 1).any()):
        raise Unsupported(
            "These position_ids start anew within a row, so it holds several sequences that must not see each other, "
            "and pruning does not keep packed sequences apart. Pass each as a row of a padded batch with its "
            "attention_mask."
        )


def refuse_later_question(pruned: Sequence[PrunedLayer], stages: Sequence[Stage]) -> None:
    """Raise `Unsupported` where a later question would in silence get what an earlier one chose."""
    if not any(layer.asked for layer in pruned):
        return
    methods = ", ".join(sorted({stage.method.name for stage in stages if stage.method.asks}))
    raise Unsupported(
        f"This cache holds the visual tokens that {methods or 'a text-guided method'} chose for an earlier "
        "piece of the prompt; what comes now would be answered from those alone. Start a new cache for each "
        "question, prune by a method that does not read the question, or pass turns='accept' to prune()."
    )


def refuse_unknown_question(ends: Tensor, spans: Sequence[Span], stages: Sequence[Stage]) -> None:
    """Raise `Unsupported` for methods that read the question where labels do not say which it is.

    ends: int64 [B], the first column whose label counts in each row. stages: those that may drop something.
    """
    asking = sorted({stage.method.name for stage in stages if stage.method.asks})
    for row, end in enumerate(ends.tolist() if asking else []):
        first = min((span.columns[0] for span in spans if span.row == row), default=-1)
        if end <= first:
            raise Unsupported(
                f"The labels of row {row} count from column {end} on, before its image, so what is prompt and what "
                f"is answer is not known, and {', '.join(asking)} chooses by the prompt. Set the labels of the "
                "prompt to -100, or pass prompt_length= (tokens of each row's prompt) to the model."
            )


def refuse_parallel(model: PreTrainedModel) -> None:
    """Raise `Unsupported` for a model whose heads are split over several processes."""
    if (getattr(model, "tp_size", None) or 1) > 1:
        raise Unsupported(
            f"This model runs tensor-parallel over {model.tp_size} processes, each of which sees only its own heads "
            "and would keep other tokens. Load it without tp_plan, for instance with device_map='auto'."
        )


def refuse_paged(text_model: PreTrainedModel) -> None:
    """Raise `Unsupported` under continuous batching, which holds keys in pages of its own."""
    if text_model.config._attn_implementation.startswith("paged"):
        raise Unsupported("Continuous batching (paged attention) cannot be pruned. Call generate() on plain batches.")


def read_mask(mask: Any, cache: Cache | None, blocks: Tensor | None) -> Tensor | None:
    """Padding as bool or int [B, past + L], from what the base model was given.

    generate() prepares 4-D masks for static caches; anything else prepared is refused. blocks: as `Family.blocks`.
    """
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        return mask
    if cache is not None:
        refuse_kinds(cache)
    static = cache is not None and any(isinstance(layer, StaticLayer) for layer in cache.layers)
    if static and isinstance(mask, dict):  # by layer type; windows in a static cache were refused above
        mask = mask["full_attention"]
        if mask is None:
            return None
    if cache is not None and static and isinstance(mask, Tensor) and mask.ndim == 4:
        past = int(cache.get_seq_length())
        seen = mask if mask.dtype == torch.bool else mask == 0
        valid = seen[:, 0].any(1)  # padding is what no token sees
        if same_as_causal(seen, valid, blocks, past):
            return valid[:, : past + mask.shape[2]]
    raise Unsupported("tokenprune needs a 2-D attention_mask [batch, tokens] (or none), not a prepared mask.")
