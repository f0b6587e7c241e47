"""Watches the vision encoder: what was encoded, how it is laid out, and the signals of each part."""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenprune.engine.encoder_call import EncoderCall, EncoderWork
from tokenprune.engine.encoder_stages import EncoderStages
from tokenprune.engine.overrides import Overrides
from tokenprune.engine.spared import SparedBlocks
from tokenprune.errors import Unsupported
from tokenprune.families.base import Encoded, Family, Part, attention_of
from tokenprune.signals import taps
from tokenprune.signals.need import Need
from tokenprune.signals.table import SIGNALS, encoder_source

PRIME = 4093


@dataclass
class Laid:
    """One call of a feature getter: medium, the parts of each item, of each of these the signals [n, ...], and what the
    stages before and inside the encoder did."""

    media: str
    items: list[list[Part]]
    signals: dict[Need, list[list[Tensor]]]
    work: EncoderWork | None = None


def need_of_stage(stage: int) -> Need:
    """What stands in `Laid.signals` for the tokens that a stage before or inside the encoder left."""
    return Need("encoded", str(stage))


class EncoderReader:
    """Wraps the feature getters of the base model.

    What a forward encodes by itself is kept per thread. generate() encodes before the first forward and passes the
    outputs on, and so can a user who asks several questions about one picture: an output is known for as long as it
    lives.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        needs: Sequence[Need],
        stages: EncoderStages,
        runs_all: Callable[[], bool],
    ) -> None:
        """runs_all: whether this thread's calls need every block of the encoder now."""
        self.model, self.family, self.needs, self.stages = model, family, needs, stages
        self.base = family.base(model)
        self.layers = {media: self._layers_of(media) for media in family.getters} if needs else {}
        read = {layer for layers in self.layers.values() for layer in layers.values()}
        self.spared = SparedBlocks(model, family, read, runs_all)
        stages.spared = self.spared.blocks
        self._getters = Overrides(self.base)
        self._local = threading.local()
        self._known: dict[int, tuple[weakref.ref, Laid]] = {}

    def _layers_of(self, media: str) -> dict[Need, nn.Module]:
        """For each need the encoder layer that it is read in; none where it is read from pixels."""
        layers, chosen = self.family.encoder(self.model, media)
        numbers = {"first": 0, "chosen": chosen, "last": -1}
        sources = {need: encoder_source(need) for need in self.needs}
        found = {need: s.layer_of(need) for need, s in sources.items() if s.pixels is None}
        at = {need: self.family.block_at(self.model, media, need.depth) for need in found if found[need] == "depth"}
        return {need: layers[at.get(need, numbers.get(name, 0))] for need, name in found.items()}

    @property
    def known(self) -> list[Need]:
        """What is known of every part: the signals, and what each stage before or inside the encoder left."""
        return [*self.needs, *(need_of_stage(number) for number in range(len(self.stages.stages)))]

    def attention(self) -> list[nn.Module]:
        """The attention modules that are listened to."""
        wanted = [(need, layer) for layers in self.layers.values() for need, layer in layers.items()]
        heard = [attention_of(layer) for need, layer in wanted if encoder_source(need).read is not None]
        return [*heard, *self.stages.attention()]

    def attach(self) -> None:
        """Put the wrappers on the base model."""
        for media, name in self.family.getters.items():
            self._getters.wrap(name, functools.partial(self._wrap, media))
        self.stages.attach()
        self.spared.attach()

    def detach(self) -> None:
        """Take the wrappers off."""
        self._getters.undo()
        self.stages.detach()
        self.spared.detach()

    def _wrap(self, media: str, original: Callable) -> Callable:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def getter(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._local, "busy", False):  # a getter that calls another one
                return original(*args, **kwargs)
            calls: dict[Need, list[Tensor]] = {need: [] for need in self.needs}
            arguments = signature.bind(*args, **kwargs).arguments
            arguments |= arguments.pop("kwargs", {})
            encoded = Encoded(media, arguments)
            self._local.busy = True
            try:
                with self.stages.encoding(encoded) as call, self._listening(media, calls):
                    output = original(*args, **kwargs)
            finally:
                self._local.busy = False
            encoded.pieces = _rows(output)
            self._remember(encoded, output, calls, call)
            self.spared.blank(media, output)
            return output

        return getter

    @contextmanager
    def _listening(self, media: str, calls: dict[Need, list[Tensor]]) -> Iterator[None]:
        """While the encoder runs, fill `calls` with what each needed layer gives."""
        heard: dict[nn.Module, dict[Need, list[Tensor]]] = {}
        handles = []
        for need, layer in self.layers.get(media, {}).items():
            if encoder_source(need).read is None:
                handles.append(layer.register_forward_hook(functools.partial(_note_output, calls[need])))
            else:
                heard.setdefault(attention_of(layer), {})[need] = calls[need]
        try:
            for module, own in heard.items():
                taps.listeners()[module] = functools.partial(_listen, own)
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module in heard:
                taps.listeners().pop(module, None)

    def _remember(
        self, encoded: Encoded, output: Any, calls: dict[Need, list[Tensor]], call: EncoderCall | None
    ) -> None:
        items = self.family.items(self.model, encoded)
        length = sum(part.length for parts in items for part in parts)
        if length != encoded.features:
            raise Unsupported(
                f"The layout of these {encoded.media}s gives {length} tokens, but the encoder made {encoded.features}. "
                f"This {self.family.name} is built in a way that tokenprune does not know."
            )
        if call is not None:
            calls = {need: call.restore(heard) for need, heard in calls.items()}
        signals = {need: self._place(need, encoded, calls[need]) for need in self.needs}
        laid = Laid(encoded.media, items, signals | self._find_left(encoded, call), None if call is None else call.work)
        self.recent().append(laid)
        if not isinstance(output, tuple):
            key = id(output)
            self._known[key] = weakref.ref(output, lambda _: self._known.pop(key, None)), laid

    def _find_left(self, encoded: Encoded, call: EncoderCall | None) -> dict[Need, list[list[Tensor]]]:
        """For each stage of the encoder bool [n] for every part: which tokens it left."""
        if call is None:
            return {}
        owners = self._owners(encoded, call)
        return {
            need_of_stage(number): [
                [record.alive[part.to(record.alive.device, non_blocking=True)] for part in parts] for parts in owners
            ]
            for number, record in enumerate(call.work.stages)
        }

    def _owners(self, encoded: Encoded, call: EncoderCall) -> list[list[Tensor]]:
        """For every part int64 [n], on the host: the group that each token is made of."""
        sequences, width = call.rows.shape
        members = call.rows.groups.members
        group = torch.arange(len(members))
        names = torch.stack([group, group * group % PRIME], dim=1).float()  # two, so that no mixture has a group's
        rows = torch.zeros(sequences * width, 2)
        rows[members] = names[:, None]
        owners = []
        for parts in self.family.pool_patches(self.model, encoded, [rows.view(sequences, width, 2)]):
            found = [part[:, 0].round().long() for part in parts]
            if not all(torch.equal(names[own], part) for own, part in zip(found, parts, strict=True)):
                raise Unsupported(
                    "A picture of this size is shrunk behind the vision encoder, so its tokens are mixtures of what "
                    "was kept and what went. Prune it at=0, or let the processor make fewer tiles of it."
                )
            owners.append(found)
        return owners

    def _place(self, need: Need, encoded: Encoded, calls: list[Tensor]) -> list[list[Tensor]]:
        """A signal of the encoder as one tensor [n, ...] per part."""
        of_pixels = encoder_source(need).pixels
        if of_pixels is not None:
            calls = [of_pixels(self.family.patches(self.model, encoded))]
        scalar = SIGNALS[need.signal].ndim == 1
        placed = self.family.pool_patches(self.model, encoded, [c[..., None] if scalar else c for c in calls])
        return [[part[:, 0] if scalar else part for part in parts] for parts in placed]

    def recent(self) -> list[Laid]:
        """What this thread encoded since `forget`, in order."""
        if not hasattr(self._local, "recent"):
            self._local.recent = []
        return self._local.recent

    def forget(self) -> None:
        """Start a new forward: what was encoded earlier counts only where its output is passed in."""
        self._local.recent = []

    def _find(self, media: str, output: Any) -> Laid | None:
        """What is known of an encoder output, or of its copy: accelerate rebuilds what it passes on."""
        reference, known = self._known.get(id(output), (None, None))
        if reference is not None and reference() is output:
            return known
        for reference, known in list(self._known.values()):
            original = reference()
            if original is not None and known.media == media and _same(original.pooler_output, output.pooler_output):
                return known
        return None

    def take(self, given: Mapping[str, Any]) -> list[Laid]:
        """What the prompt of this forward is made of. given: its `mm_encoder_outputs`, by medium."""
        laid = []
        for media, output in given.items():
            if output is None:
                continue
            known = self._find(media, output)
            if known is None:
                raise Unsupported(
                    f"The {media} features of this prompt are not those that the pruned model encoded: they were made "
                    "before prune(), or chunked prefill cut them. Pass pixel_values, or encode with the pruned model, "
                    "and prefill in one piece."
                )
            laid.append(known)
        return laid + self.recent()


def _listen(
    calls: dict[Need, list[Tensor]], query: Tensor, key: Tensor, scaling: float, mask: Tensor | None, softcap: float
) -> None:
    for need, found in calls.items():
        read = encoder_source(need).read
        assert read is not None, "listened to for those that read attention"
        found.append(read(query, key, scaling, mask, need))


def _note_output(found: list[Tensor], module: nn.Module, args: tuple, output: Any) -> None:
    """Hook of an encoder layer: its output as float32 [N, patches, c]."""
    hidden = (output[0] if isinstance(output, tuple) else output).float()
    found.append(hidden[None] if hidden.ndim == 2 else hidden)


def _rows(output: Any) -> tuple[int, ...]:
    """Feature rows of each piece that a getter's output gives to the prompt."""
    features = output[1] if isinstance(output, tuple) else output.pooler_output
    if features is None:  # Fuyu's getter gives its rows by another name
        features = output.last_hidden_state
    if features is None:
        raise Unsupported("Its visual features are not rows that a getter gives to the prompt, so they cannot be told.")
    if isinstance(features, Tensor):
        features = features.flatten(0, -3) if features.ndim > 2 else features[None]
    return tuple(f[..., 0].numel() for f in features)


def _same(one: Any, other: Any) -> bool:
    """Whether two outputs hold the same features."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.to(other.device), other)
    if isinstance(one, Tensor) or isinstance(other, Tensor) or len(one) != len(other):
        return False
    return all(_same(a, b) for a, b in zip(one, other, strict=True))
