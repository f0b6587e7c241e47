"""The first prompt of a run against its reference, where nobody has tested this combination of versions."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.checking.compare import TOLERANCES, Comparison, Recorder, outcome_of
from tokenprune.engine.cache import CACHE_NAMES, cache_in
from tokenprune.engine.prompt import media_in
from tokenprune.engine.run import Run
from tokenprune.errors import Unsupported, unknown
from tokenprune.families.base import Family
from tokenprune.methods.stage import Stage
from tokenprune.version import TESTED_TRANSFORMERS, VERSION

VERIFY = ("auto", "always", "never")


def asks_to_verify(verify: str, stages: Sequence[Stage], family: Family) -> bool:
    """Whether `verify=` of `prune` asks for a comparison, of this family on the transformers that is installed. Raises
    `Unsupported` for stages that no reference can be made for."""
    if verify not in VERIFY:
        raise unknown("verify", verify, VERIFY)
    asked = verify == "always" or (verify == "auto" and bool(untested(family)))
    if asked and any(stage.method.merges_in == "encoder" for stage in stages):
        raise Unsupported(
            "Features merged before the projector have no masked reference, so they cannot be verified with "
            f"transformers {version('transformers')}. Take merge_in='projected', or pass verify='never' to prune()."
        )
    return asked


def untested(family: Family) -> str:
    """What no test of this package holds: a version of transformers, or a model type; empty where tests hold both."""
    if not is_tested():
        return f"transformers {version('transformers')}"
    return "" if family.trusted else f"model type {family.name!r}"


def is_tested() -> bool:
    """Whether the installed transformers is of a minor version that the laws were run on."""
    return ".".join(version("transformers").split(".")[:2]) in TESTED_TRANSFORMERS


def verify_first_prompt(run: Run) -> None:
    """Compare the next prompt with a picture or video, layer by layer, before its answer goes on. Raises `Unsupported`
    where it differs by more than rounding explains, and again at the next one."""
    _FirstPrompt(run)


class _FirstPrompt:
    """Hooks around the whole model; other threads' prompts wait until the first one is through."""

    def __init__(self, run: Run) -> None:
        self.run, self.done = run, False
        self.recorder = Recorder(run.text_model)
        self.listening = ExitStack()
        self.lock = threading.Lock()
        self.owner: int | None = None
        run.hold(run.model.register_forward_pre_hook(self._before, with_kwargs=True))
        run.hold(run.model.register_forward_hook(self._after, with_kwargs=True, always_call=True))

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.done or self.owner == threading.get_ident() or not media_in(kwargs):
            return
        self.lock.acquire()
        if self.done:
            self.lock.release()
            return
        self.owner = threading.get_ident()
        cache = cache_in(kwargs)
        if module.training or (cache is not None and cache.get_seq_length()):
            odd = "is in training mode" if module.training else "continues a cache"
            raise Unsupported(
                f"The first prompt with a picture is compared with its reference (transformers "
                f"{version('transformers')}), and this one {odd}. Start with a new cache in eval mode, or pass "
                "verify='never' to prune()."
            )
        self.recorder.calls.clear()
        self.listening.enter_context(self.recorder.listening())

    def _after(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        """Runs after an exception too, then without an output."""
        if self.owner != threading.get_ident() or self.run.is_lifted:
            return
        self.listening.close()
        try:
            if output is not None:
                self._compare(module, args, kwargs, output)
        finally:
            self.owner = None
            self.lock.release()

    def _compare(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        mask = kwargs.get("attention_mask")
        outcome = outcome_of(self.run, ids, mask if isinstance(mask, Tensor) and mask.ndim == 2 else None)
        tolerance = TOLERANCES.get(self.run.model.dtype, max(TOLERANCES.values()))
        comparison = Comparison(self.run, self.recorder, ids.shape[1], tolerance)
        again = {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}
        again |= {"use_cache": False, "attention_mask": _without_room(mask, ids.shape[1])}
        with torch.no_grad(), self.run.lift(encoder=True), comparison.against(outcome):
            expected = module(*args, **again)
        if "logits" in output:
            last = torch.full((len(ids), 1), ids.shape[1] - 1)
            comparison.logits(0, output.logits[:, -1:], expected.logits[:, -1:], last.to(output.logits.device))
        family = self.run.family
        new = untested(family) or f"transformers {version('transformers')}"
        if comparison.parted is not None:
            mend = f"Install a tested version ({', '.join(TESTED_TRANSFORMERS)})"
            if not family.trusted:
                mend = f"No family file says what is special about {family.name}: it cannot be pruned as it is"
            raise Unsupported(
                f"With {new} this pruned prompt is wrong: it parts from the full-length model with the dropped "
                f"tokens masked {comparison.parted}. {mend}, and report this with the output of `tokenprune check`."
            )
        self.done = True
        if untested(family):
            warnings.warn(
                f"tokenprune {VERSION} was not tested with {new}. The first prompt was compared with its "
                "reference and holds; `tokenprune check` compares decoding steps too.",
                stacklevel=2,
            )


def _without_room(mask: Any, length: int) -> Any:
    """A mask that was prepared for a static cache, without the columns that are still empty."""
    if isinstance(mask, dict):
        return {name: _without_room(one, length) for name, one in mask.items()}
    return mask[..., :length] if isinstance(mask, Tensor) and mask.ndim == 4 else mask
