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
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenprune.errors import Unsupported
from tokenprune.signals.reading import Listener

MARK = "_tokenprune_listens"  # on the attention modules of pruned models; other models may be compiled

_lock = threading.Lock()
_users = 0
_saved: dict[str, Callable[..., Any]] = {}
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
    original: Callable[..., Any] | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
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
