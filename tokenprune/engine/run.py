"""A pruned model: hooks on, hooks off, and what the last prompt came to."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from tokenprune.core.trace import Ranking
from tokenprune.engine.decode_steps import StepReport
from tokenprune.engine.forward import Merged
from tokenprune.engine.passes import Passes
from tokenprune.engine.refuse import unwrap
from tokenprune.engine.report import Report
from tokenprune.engine.setup import Policies, Setup
from tokenprune.errors import Unsupported, unknown
from tokenprune.families.base import Span
from tokenprune.families.registry import family_of
from tokenprune.methods.stage import Stage
from tokenprune.signals import taps
from tokenprune.signals.checks import read_signal
from tokenprune.signals.table import SIGNALS

# Text model -> its run, which must not keep the model alive.
_active: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Run]] = weakref.WeakKeyDictionary()


class Run(Setup):
    """A model with pruners attached. `remove()` (or leaving the `with` block) restores the model exactly."""

    def __init__(self, model: PreTrainedModel, stages: Sequence[Stage], policies: Policies) -> None:
        super().__init__(model, stages, policies)
        if self.text_model in _active:
            raise Unsupported("This model is already pruned. Call remove() on the first run, or leave its with block.")
        self._passes = Passes(self)
        self._untap: weakref.finalize | None = None
        try:
            self._attach()
        except BaseException:
            self.remove()
            raise

    def __repr__(self) -> str:
        stages = ", ".join(f"{stage.method!r} at {stage.at}" for stage in [*self.stages, *self.decoding_stages])
        state = "attached to" if self._attached else "removed from"
        return f"Run({stages}, positions {self.policies.positions}, {state} a {type(self.model).__name__})"

    @property
    def positions(self) -> str:
        """The position policy."""
        return self.policies.positions

    def _attach(self) -> None:
        _active[self.text_model] = weakref.ref(self)
        if self.tapped:
            taps.install()
            self._untap = weakref.finalize(self.text_model, taps.uninstall)  # where it is dropped without remove()
            self._untap.atexit = False
            for module in self._listening():
                setattr(module, taps.MARK, True)
        self._passes.attach()

    def hold(self, handle: RemovableHandle) -> None:
        """Keep the handle of a hook that goes when this run is removed."""
        self._passes.hold(handle)

    def lift(self, encoder: bool = False) -> AbstractContextManager[None]:
        """While this is open, the model runs unpruned in this thread. encoder: whether stages before and inside the
        vision encoder still choose; the LLM then sees all rows, what stands for those that went among them."""
        return self._passes.lift(encoder)

    def lifted(self, encoder: bool = False) -> AbstractContextManager[None]:
        """The older name of `lift`, for one release."""
        warnings.warn("run.lifted() goes in the next release. Call run.lift().", DeprecationWarning, stacklevel=2)
        return self.lift(encoder)

    @property
    def is_lifted(self) -> bool:
        """Whether the model runs unpruned in this thread for the time."""
        return self._passes.is_lifted

    def remove(self) -> None:
        """Take everything off: hooks, taps, this run's mark on the model. Calling it again does nothing."""
        if not self._attached:
            return
        del _active[self.text_model]
        self._passes.detach()
        if self._untap is not None:
            self._untap()
            for module in self._listening():
                module.__dict__.pop(taps.MARK, None)

    def _listening(self) -> list[nn.Module]:
        heard = [layer.self_attn for layer in self.text_model.layers if hasattr(layer, "self_attn")]
        return [*heard, *self._passes.encoder.attention()]

    @property
    def _attached(self) -> bool:
        found = _active.get(self.text_model)
        return found is not None and found() is self

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    def give(self, **signals: Sequence[Tensor]) -> None:
        """Bring signals that no model of the family computes, for the prompts that follow (until given anew).

        clip_image: one tensor [n, p] for each image, tile or video of the prompt, in reading order; clip_text: one
        tensor [q, p] for each row of the batch. Measures are read as float32.
        """
        for name in signals:
            if name not in SIGNALS or not SIGNALS[name].given:
                raise unknown("signal to give", name, [n for n, s in SIGNALS.items() if s.given])
        found = {name: [read_signal(name, x) for x in values] for name, values in signals.items()}
        self._passes.given |= {
            name: [x if SIGNALS[name].numbers else x.float() for x in v] for name, v in found.items()
        }

    def trace(self) -> list[Ranking]:
        """From now on every stage of every prompt adds what it ranked by to this list (which copies it to the host)."""
        rankings = self._passes.rankings = []
        return rankings

    @property
    def kept(self) -> list[list[Tensor]]:
        """For each stage, for each row of the last prompt: ascending int64 prompt columns of the visual tokens that are
        still there (0-based, padding counted)."""
        return self._passes.last().kept

    @property
    def spans(self) -> list[Span]:
        """The images, tiles and videos of the last prompt: row, prompt columns and grid of each, in reading order."""
        return self._passes.last().spans

    @property
    def merges(self) -> list[list[Merged]]:
        """For each stage what it merged: row of the batch, prompt columns [n] that went in, prompt columns [k] that
        stayed, and weights float32 [k, n]: the stayed token i became weights[i] @ hidden states of what went in (with
        merge_in='encoder': the projection of weights[i] @ encoder features)."""
        return self._passes.last().merged

    def columns(self, layer: int) -> Tensor:
        """int64 [B, K]: the prompt column of each row that decoder layer `layer` had of the last prompt, -1 for
        padding."""
        return self._passes.last().columns(layer)

    @property
    def steps(self) -> list[StepReport]:
        """What each decoding step since the last prompt looked at and cost, with stages at every decoding step."""
        return [] if self._passes.latest is None else self._passes.last().steps

    def report(self) -> Report:
        """What the last prompt really cost: tokens, FLOPs, KV bytes, selection time; and its decoding steps."""
        return self._passes.last().report()


def run_on(text_model: nn.Module) -> Run | None:
    """The run that is attached to a text model."""
    found = _active.get(text_model)
    return None if found is None else found()


def language_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a model, wrapped or not."""
    layers: Any = language_model(model).layers
    return layers


def language_model(model: PreTrainedModel) -> PreTrainedModel:
    """The text model inside a vision-language model, wrapped or not."""
    model = unwrap(model)
    return family_of(model).language_model(model)
