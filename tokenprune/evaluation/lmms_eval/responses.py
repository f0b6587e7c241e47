"""lmms-eval's response cache, which knows a model by its arguments as they were written.

The same words can stand for something else: a recipe's file that was edited, a default that changed, another version of
a method. So what a pruned model does goes into the key of its responses too.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.caching.response_cache import ResponseCache

from tokenprune.errors import Unsupported
from tokenprune.evaluation.lmms_eval.settings import digest
from tokenprune.plan import Plan

KEY = "_model_fingerprint_hash"


def key_responses() -> None:
    """From now on, responses of pruned models are kept under what their pruning says; those of others as ever."""
    if not hasattr(ResponseCache.execute, "__wrapped__"):
        ResponseCache.execute = _add_key(ResponseCache.execute)


def _add_key(execute: Callable[..., list]) -> Callable[..., list]:
    @functools.wraps(execute)
    def keyed(self: ResponseCache, lm: lmms, reqtype: str, requests: list[Instance]) -> list[Any]:
        plan = getattr(lm, "plan", None)
        if not isinstance(plan, Plan):
            return execute(self, lm, reqtype, requests)
        if not hasattr(self, KEY):
            raise Unsupported("This lmms-eval's response cache cannot be told what is pruned. Leave out --use_cache.")
        written = getattr(self, KEY)
        setattr(self, KEY, hashlib.sha256(f"{written} {digest(plan)}".encode()).hexdigest()[:16])
        try:
            return execute(self, lm, reqtype, requests)
        finally:
            setattr(self, KEY, written)

    return keyed
