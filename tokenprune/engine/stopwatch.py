"""How long a piece of work takes on the device, without waiting for it."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Runs from its making to `stop`. On a GPU, events in its stream of work are the ends; nothing waits for them until
    `seconds` is asked for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else None
        self._began = self._seconds = 0.0
        self._mark(0)

    def _mark(self, end: int) -> None:
        if self._events is not None:
            self._events[end].record(torch.cuda.current_stream(self._device))
        elif end:
            self._seconds = time.perf_counter() - self._began
        else:
            self._began = time.perf_counter()

    def stop(self) -> None:
        """End here."""
        self._mark(1)

    @property
    def seconds(self) -> float:
        """What it took, once the device is there."""
        if self._events is None:
            return self._seconds
        self._events[1].synchronize()
        return self._events[0].elapsed_time(self._events[1]) / 1000


class Stopwatches:
    """Several pieces of work as one."""

    def __init__(self, parts: list[Stopwatch]) -> None:
        self.parts = parts

    @property
    def seconds(self) -> float:
        """What they took together."""
        return sum(part.seconds for part in self.parts)
