"""One pass through a model on one side of the comparison: prefill, first token, decoding, memory."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tokenprune.bench.workload import Workload
from tokenprune.engine.cache import cache_name
from tokenprune.engine.report import kv_bytes
from tokenprune.engine.run import Run, language_model

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Sample:
    """One pass. Times in milliseconds: prefill is the language model's alone, selection (a part of it) included;
    first_token is everything from pixels to the first new token; token is the mean of the new tokens after it.
    peak_bytes: memory above what was held before (of the device; on a CPU resident, None where the system does not
    tell)."""

    prefill: float
    first_token: float
    token: float
    selection: float
    peak_bytes: int | None
    kv_bytes: int


Side = Callable[[], AbstractContextManager[Run | None]]


@torch.inference_mode()
def sample(work: Workload, side: Side, new_tokens: int) -> Sample:
    """Run the prompt and `new_tokens` more, greedily, on one side."""
    device = work.model.device
    marks: list[float] = []

    def mark(*_: object) -> None:
        synchronize(device)
        marks.append(time.perf_counter())

    language = language_model(work.model)
    cache = DynamicCache(config=work.model.config)
    with side() as run:
        # A pruner's hook comes after this one, and so its selection counts; what makes a prompt ideal does not.
        before = language.register_forward_pre_hook(mark, prepend=run is not None)
        after = language.register_forward_hook(mark)
        try:
            with peak_memory(device) as peak:
                mark()
                token = first(prompt(work, cache))
                mark()
        finally:
            before.remove()
            after.remove()
        selection = 0.0 if run is None else run.report().selection_ms
        held = kv_bytes(cache)[0]
        began = time.perf_counter()
        for _ in range(new_tokens):
            token = first(work.model(input_ids=token, **{cache_name(work.model): cache}))
        synchronize(device)
        decoded = time.perf_counter() - began
    start, entered, left, end = marks
    return Sample(
        prefill=1000 * (left - entered),
        first_token=1000 * (end - start),
        token=1000 * decoded / max(new_tokens, 1),
        selection=selection,
        peak_bytes=peak(),
        kv_bytes=held,
    )


@torch.inference_mode()
def prompt(work: Workload, cache: DynamicCache | None = None) -> Any:
    """The model's output for the prompt; without a cache to fill, it fills none."""
    given = {cache_name(work.model): cache}
    return work.model(**work.inputs, **given, use_cache=cache is not None, logits_to_keep=1)


def first(output: Any) -> Tensor:
    """The most likely next token of every row, int64 [B, 1], known to the host as a server has to know it."""
    token = output.logits[:, -1:].argmax(-1)
    token.tolist()
    return token


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """The result tells the highest memory inside the block above what was held at its start, once it is left."""
    found: list[int | None] = [None]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        yield lambda: found[0]
        found[0] = torch.cuda.max_memory_allocated(device) - held
        return
    known = STATUS.exists() and CLEAR.exists()
    if known:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # else memory that was freed before would hide a peak
        if trim is not None:
            trim(0)
        CLEAR.write_text("5")  # the highest resident size starts anew
        held = resident("VmRSS")
    yield lambda: found[0]
    if known:
        found[0] = resident("VmHWM") - held


def resident(name: str) -> int:
    """Bytes of one entry of the process's memory status."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


class Ideal:
    """The same model, whose language model gets a prompt that was short from the start: the same vision encoder runs,
    then the kept rows of what it and the text gave, prepared beforehand, take the place of all rows. Separators of
    tiles are left out, which favours the ideal by a few rows."""

    def __init__(self, work: Workload, kept: list[Tensor]) -> None:
        """kept: for each row of the batch the ascending prompt columns of the visual tokens that stay."""
        self.language = language_model(work.model)
        found = {}

        def catch(module: nn.Module, args: tuple, kwargs: dict) -> None:
            found.update(kwargs)

        handle = self.language.register_forward_pre_hook(catch, with_kwargs=True)
        try:
            prompt(work)
        finally:
            handle.remove()
        embeds = found["inputs_embeds"]
        stays = torch.stack([self._stays(row, mine, kept) for row, mine in zip(work.visual(), kept, strict=True)])
        columns = stays.nonzero()[:, 1].view(len(stays), -1).to(embeds.device)
        self.short = {"inputs_embeds": embeds.gather(1, columns[..., None].expand(-1, -1, embeds.shape[-1]))}
        self.short["attention_mask"] = None
        positions = found.get("position_ids")
        if positions is not None:
            own = columns.expand(*positions.shape[:-2], -1, -1)
            self.short["position_ids"] = positions.expand(*own.shape[:-1], -1).gather(-1, own)
        for name, given in found.items():  # what else goes by tokens
            if name not in self.short and isinstance(given, Tensor) and given.shape[:2] == embeds.shape[:2]:
                rows = torch.arange(len(columns), device=given.device)[:, None]
                self.short[name] = given[rows, columns.to(given.device)]
        mask = found.get("visual_pos_masks")
        if mask is not None:
            alive = stays.to(mask.device)[mask]
            planes = found.get("deepstack_visual_embeds") or []
            self.short["deepstack_visual_embeds"] = [plane[alive] for plane in planes] or None

    @staticmethod
    def _stays(visual: Tensor, mine: Tensor, kept: list[Tensor]) -> Tensor:
        """bool [L]: text and kept tokens; rows that keep fewer get others on top, as padding would cost the same."""
        stays = ~visual
        stays[mine] = True
        spare = max(map(len, kept)) - len(mine)
        stays[(~stays).nonzero().flatten()[:spare]] = True
        return stays

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within the block prompts are short."""

        def swap(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            return (args, kwargs | self.short) if kwargs["inputs_embeds"].shape[1] > 1 else None

        handle = self.language.register_forward_pre_hook(swap, with_kwargs=True)
        try:
            yield None
        finally:
            handle.remove()
