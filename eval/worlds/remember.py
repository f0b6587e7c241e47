"""An encoder that is asked the same again and again, as in a comparison of methods behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from hashlib import blake2b
from typing import Any

from torch import Tensor, nn


def _name(value: Any) -> bytes:
    if isinstance(value, Tensor):
        return blake2b(value.detach().cpu().contiguous().numpy()).digest() + repr(value.shape).encode()
    return repr(value).encode()


@contextmanager
def remembered(module: nn.Module, found: dict[bytes, Any]) -> Iterator[None]:
    """While open, equal inputs get the output they got before, kept in `found`, unless someone listens inside: then
    the module runs, so that what is not encoded is not."""
    run = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()):
            return run(*args, **kwargs)
        key = b" ".join(_name(one) for one in (*args, *sorted(kwargs), *(kwargs[name] for name in sorted(kwargs))))
        if key not in found:
            found[key] = run(*args, **kwargs)
        return copy(found[key])  # transformers writes into what it is given

    module.forward = forward
    try:
        yield
    finally:
        del module.forward
