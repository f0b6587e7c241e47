"""Reads single rows of attention where the library computes it, whatever the kernel, without an L x L matrix.

While a run that needs it is attached, every function of the attention table has a local override that looks for a
listener on the module it serves and then calls the original. Listeners are per thread.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenprune.errors import Unsupported

Listener = Callable[[Tensor, Tensor, float, "Tensor | None", float], None]  # query, key, scaling, mask, softcap

MARK = "_tokenprune_listens"  # on the attention modules of pruned models; other models may be compiled

_lock = threading.Lock()
_users = 0
_saved: dict[str, Callable] = {}
_local = threading.local()


def install() -> None:
    """Put the overrides in place (counted: the last `uninstall` takes them out)."""
    global _users
    with _lock:
        _users += 1
        if _users > 1:
            return
        table = ALL_ATTENTION_FUNCTIONS
        _saved.update(table._local_mapping)
        for name in [*table, "eager"]:
            table[name] = partial(_attention, table.get(name))


def uninstall() -> None:
    """Give the table back as it was found once nobody listens any more."""
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            ALL_ATTENTION_FUNCTIONS._local_mapping.clear()
            ALL_ATTENTION_FUNCTIONS._local_mapping.update(_saved)
            _saved.clear()


def listeners() -> dict[nn.Module, Listener]:
    """This thread's listeners by attention module."""
    if not hasattr(_local, "listeners"):
        _local.listeners = {}
    return _local.listeners


def clock() -> Callable[[], float]:
    """Start counting this thread's seconds in attention functions; the result stops and tells them."""
    _local.seconds = 0.0

    def stop() -> float:
        seconds, _local.seconds = _local.seconds, None
        return seconds

    return stop


def _attention(
    original: Callable | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: object,
) -> tuple[Tensor, Tensor | None]:
    if original is None:
        original = sys.modules[type(module).__module__].eager_attention_forward
    if torch.compiler.is_compiling():
        if hasattr(module, MARK):
            raise Unsupported("Attention of a pruned model cannot be compiled: the signals are lost in the trace.")
        return original(module, query, key, value, attention_mask, **kwargs)
    began = time.perf_counter()
    listener = listeners().get(module)
    if listener is not None:
        scaling = kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        softcap = kwargs.get("softcap") or 0.0
        bounds = kwargs.get("cu_seq_lens_q")  # several sequences in one call, as varlen kernels take them
        with torch.no_grad():
            if bounds is None:
                listener(query, key, scaling, attention_mask, softcap)
            else:
                lengths = bounds.diff().tolist()
                for q, k in zip(query.split(lengths, 2), key.split(lengths, 2), strict=True):
                    listener(q, k, scaling, None, softcap)
    result = original(module, query, key, value, attention_mask, **kwargs)
    if getattr(_local, "seconds", None) is not None:
        _local.seconds += time.perf_counter() - began
    return result


def received_attention(
    query: Tensor,
    key: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    focus: Tensor | None = None,
    chunk: int = 256,
) -> Tensor:
    """Attention each position receives in a bidirectional layer: mean over heads and over the queries that see it.

    mask: [N or 1, 1, queries, keys] as kernels take it (bool: True is seen; float: added), or None. focus: float
    [N, queries], how much each query counts; default: all alike. float32 [N, keys].
    """
    if key.shape[1] != query.shape[1]:
        raise Unsupported("The vision encoder shares keys between heads, which the saliency signal cannot read yet.")
    total = key.new_zeros(key.shape[0], key.shape[2], dtype=torch.float32)
    focus = total.new_ones(1, query.shape[2]) if focus is None else focus
    for start in range(0, query.shape[2], chunk):
        rows = slice(start, start + chunk)
        paid = _masked(query[:, :, rows].float() @ key.float().mT * scaling, mask, start).softmax(-1).mean(1)
        total += (paid * focus[:, rows, None]).sum(1)
    return total / _over_seen(focus, mask, key.shape[2]).clamp(min=1)


def focused_attention(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None, times: float) -> Tensor:
    """The same from the queries alone that receive more than `times` the mean themselves; float32 [N, keys].

    Where no query does, all of them count.
    """
    received = received_attention(query, key, scaling, mask)
    everyone = torch.ones_like(received)
    mean = _over_seen(received, mask, key.shape[2]) / _over_seen(everyone, mask, key.shape[2])
    focus = (received > times * mean).float()
    focus = torch.where(_over_seen(focus, mask, key.shape[2]) > 0, focus, everyone)
    return received_attention(query, key, scaling, mask, focus)


def first_row_attention(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """Attention that the first position pays in a bidirectional layer, mean over heads; float32 [N, keys]."""
    scores = _masked(query[:, :, :1].float() @ key.float().mT * scaling, mask, 0)
    return scores.softmax(-1).mean(1).squeeze(1)


def joint_row_attention(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """Attention of the first position as if all heads were one wide head; float32 [N, keys]."""
    scores = (query[:, :, :1].float() @ key.float().mT).sum(1, keepdim=True) * scaling / query.shape[1] ** 0.5
    return _masked(scores, mask, 0).softmax(-1)[:, 0, 0]


def _over_seen(values: Tensor, mask: Tensor | None, keys: int) -> Tensor:
    """For each key the sum of `values` [N, queries] over the queries that see it; [N, keys] (seeing is mutual)."""
    if mask is None:
        return values.sum(-1, keepdim=True).expand(-1, keys)
    rows = mask[:, None, None] if mask.ndim == 2 else mask
    rows = rows[:, 0, :, :keys].expand(-1, values.shape[1], -1)
    seen = rows > torch.finfo(rows.dtype).min / 2 if rows.is_floating_point() else rows.bool()
    return (values[:, None] @ seen.to(values.dtype)).squeeze(1)


def _masked(scores: Tensor, mask: object, first: int) -> Tensor:
    if mask is None:
        return scores
    if not isinstance(mask, Tensor):
        raise Unsupported(
            "The saliency signal cannot be read through flex attention's block masks, which padded images need. "
            "Load the model with attn_implementation='sdpa'."
        )
    rows = mask[:, None, None] if mask.ndim == 2 else mask[:, :, first : first + scores.shape[2]]
    rows = rows[..., : scores.shape[3]]
    return (
        scores + rows if rows.is_floating_point() else scores.masked_fill(~rows.bool(), torch.finfo(scores.dtype).min)
    )
