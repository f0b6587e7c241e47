"""What a pruned vision encoder must equal: the encoder on all rows, with those that went hidden from a block on.

Written without any code of the package, so that the two can disagree. Which rows make up which token is found by trial.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class _Seen(Exception):
    """Ends a pass before the language model."""


def towers_of(model: PreTrainedModel) -> list[nn.ModuleList]:
    """The layers of every vision encoder."""
    ends = ("blocks", "layers", "layer")
    return [
        m
        for name, m in model.named_modules()
        if isinstance(m, nn.ModuleList)
        and any(w in name for w in ("vision", "visual", "tower"))
        and name.endswith(ends)
    ]


def rows_of_columns(model: PreTrainedModel, text_model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, tuple]:
    """bool [rows of the encoder, B, L], which prompt columns change with a row where blocks do nothing, and the shape
    (sequences, rows of each)."""
    shape: list[tuple[int, int]] = []
    probed: list[int] = []

    def first(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone(memory_format=torch.contiguous_format)
        shape[:] = [tuple(hidden.shape[:2]) if hidden.ndim == 3 else (1, hidden.shape[0])]
        flat = hidden.view(-1, hidden.shape[-1])
        for row in probed:
            flat[row] += torch.linspace(1, 3, flat.shape[1])
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    def nothing(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def features() -> Tensor:
        found: list[Tensor] = []

        def see(module: nn.Module, args: tuple, kwargs: dict) -> None:
            found.append(kwargs["inputs_embeds"])
            raise _Seen

        handles = [text_model.register_forward_pre_hook(see, with_kwargs=True)]
        for blocks in towers_of(model):
            handles.append(blocks[0].register_forward_pre_hook(first, with_kwargs=True))
            handles += [block.register_forward_hook(nothing, with_kwargs=True, prepend=True) for block in blocks]
        try:
            model(**inputs)
        except _Seen:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return found[0]

    with torch.no_grad():
        plain = features()
        changes = []
        for row in range(shape[0][0] * shape[0][1]):
            probed[:] = [row]
            changes.append((features() - plain).abs().amax(-1) > 1e-6)
    return torch.stack(changes), shape[0]


@contextmanager
def hidden_rows(model: PreTrainedModel, gone: Tensor, block: int) -> Iterator[None]:
    """From `block` on no row of the encoder sees those that are `gone`, bool [sequences, rows]."""
    numbers: dict[nn.Module, int] = {}
    for i, layer in (pair for blocks in towers_of(model) for pair in enumerate(blocks)):
        for name in ("self_attn", "attention", "attn"):
            if hasattr(layer, name):
                numbers[getattr(layer, name)] = i
    seen: dict[int, int] = {}

    def masked(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kw: Any
    ) -> tuple[Tensor, None]:
        scaling = kw.get("scaling") or query.shape[-1] ** -0.5
        i, length = numbers[module], key.shape[2]
        scores = query @ key.mT * scaling
        if attention_mask is not None:
            own = attention_mask if attention_mask.dtype == torch.bool else attention_mask > -1
            scores = scores.masked_fill(~own, -torch.inf)
        if i >= block:
            start = seen.get(i, 0) if len(gone) == 1 else 0
            columns = gone[:, start : start + length] if len(gone) == 1 else gone
            seen[i] = start + length
            scores = scores.masked_fill(columns[:, None, None], -torch.inf)
        return (scores.softmax(-1).nan_to_num() @ value).transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register("hidden_rows", masked)
    configs = {id(module.config): module.config for module in numbers}.values()
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation_internal = "hidden_rows"
    try:
        yield
    finally:
        for config, own in zip(configs, before, strict=True):
            config._attn_implementation_internal = own
        ALL_ATTENTION_FUNCTIONS._local_mapping.pop("hidden_rows", None)
