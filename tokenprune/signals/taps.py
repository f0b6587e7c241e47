"""Reads single rows of attention where the library computes it, whatever the kernel, without an L x L matrix.

While a run that needs it is attached, every function of the attention table has a local override that looks for a
listener on the module it serves and then calls the original. Listeners are per thread, and so are adjusters, which may
widen queries, keys and values before that, and what attends to several sequences at once.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenprune.errors import Unsupported
from tokenprune.signals.reading import Listener

Adjuster = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]
MARK = "_tokenprune_listens"  # on the attention modules of pruned models; other models may be compiled
UNTOUCHED = (None, None, None)

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


def adjusters() -> dict[nn.Module, Adjuster]:
    """This thread's adjusters by attention module: of queries, keys, values [N, heads, rows, e] and the scaling they
    make wider ones, of whose output only the first e values count."""
    if not hasattr(_local, "adjusters"):
        _local.adjusters = {}
    return _local.adjusters


@contextmanager
def unheard() -> Iterator[None]:
    """While this is open, this thread may compile attention of a pruned model: nothing listens."""
    _local.unheard = True
    try:
        yield
    finally:
        _local.unheard = False


class Batch(Protocol):
    """Several sequences of one call."""

    def split(self, *parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Sequence by sequence, of [1, H, rows, e] each."""

    def attend(
        self,
        original: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """What the original makes of all sequences: output [1, rows, H, e], and no weights."""


def batches() -> dict[nn.Module, Batch]:
    """This thread's sequences by attention module, where they are attended to at once."""
    if not hasattr(_local, "batches"):
        _local.batches = {}
    return _local.batches


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
        if hasattr(module, MARK) and not getattr(_local, "unheard", False):
            raise Unsupported("Attention of a pruned model cannot be compiled: the signals are lost in the trace.")
        return original(module, query, key, value, attention_mask, **kwargs)
    listener, adjuster, batch = listeners().get(module), adjusters().get(module), batches().get(module)
    if (listener, adjuster, batch) == UNTOUCHED and getattr(_local, "seconds", None) is None:
        return original(module, query, key, value, attention_mask, **kwargs)
    began = time.perf_counter()
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if listener is not None:
        softcap = kwargs.get("softcap") or 0.0
        with torch.no_grad():
            for q, k, mask in _sequences(query, key, attention_mask, batch, kwargs.get("cu_seq_lens_q")):
                listener(q, k, scaling, mask, softcap)
    width = value.shape[-1]
    if adjuster is not None:
        query, key, value = adjuster(query, key, value, scaling)
        kwargs |= {"scaling": scaling}
    if batch is None:
        result = original(module, query, key, value, attention_mask, **kwargs)
    else:
        result = batch.attend(original, module, query, key, value, **kwargs)
    if adjuster is not None:
        result = result[0][..., :width], result[1]
    if getattr(_local, "seconds", None) is not None:
        _local.seconds += time.perf_counter() - began
    return result


def _sequences(
    query: Tensor, key: Tensor, mask: Tensor | None, batch: Batch | None, bounds: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Queries, keys and mask of each sequence of a call: several come as a batch, or with the boundaries that varlen
    kernels take."""
    if batch is not None:
        yield from ((q, k, None) for q, k in batch.split(query, key))
    elif bounds is not None:
        lengths = bounds.diff().tolist()
        yield from ((q, k, None) for q, k in zip(query.split(lengths, 2), key.split(lengths, 2), strict=True))
    else:
        yield query, key, mask
