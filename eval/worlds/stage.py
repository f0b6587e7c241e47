"""A training stage that warms up, decays, logs, validates and resumes, and its optimizers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

SAVE_EVERY = 100
WARMUP = 50  # steps


def optimizers(modules: Iterable[nn.Module], muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the transformer layers and the projector, AdamW on embeddings, heads and vectors."""
    matrices, rest = [], []
    for module in modules:
        for name, p in module.named_parameters():
            hidden = p.ndim == 2 and any(part in name for part in ("layers.", "blocks.", "linear_", "mlp."))
            (matrices if hidden else rest).append(p)
    return [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


class Stage:
    """One training stage: warm-up and linear decay, a progress bar, a log, and checkpoints to resume from."""

    def __init__(
        self, name: str, out: Path, steps: int, batches: Callable[[int], IterableDataset], device: str
    ) -> None:
        """batches: the training batches from a number on."""
        self.name, self.out, self.steps, self.batches, self.device = name, out, steps, batches, device
        self.log = out / "log.jsonl"
        self.checkpoint = out / f"{name}.pt"

    def run(
        self,
        modules: dict[str, nn.Module],
        opts: list[torch.optim.Optimizer],
        loss_of: Callable[[Any, float], tuple[Tensor, dict]],
        validate: Callable[[], dict],
    ) -> None:
        start = self._resume(modules, opts)
        if start >= self.steps:
            return
        base = [[group["lr"] / group.get("decay", 1.0) for group in opt.param_groups] for opt in opts]
        loader = DataLoader(self.batches(start), batch_size=None, num_workers=max(1, (os.cpu_count() or 1) - 1))
        columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        with Progress(*columns) as bar:
            task = bar.add_task(self.name, total=self.steps, completed=start, note="")
            began = time.monotonic()
            for step, batch in enumerate(loader, start):
                decay = min((step + 1) / WARMUP, 1.0) * (1 - step / self.steps)
                for opt, rates in zip(opts, base, strict=True):
                    for group, rate in zip(opt.param_groups, rates, strict=True):
                        group["lr"], group["decay"] = rate * decay, decay
                with torch.autocast(self.device, torch.bfloat16):
                    loss, parts = loss_of(batch.to(self.device), step / self.steps)
                loss.backward()
                for opt in opts:
                    opt.step()
                    opt.zero_grad(set_to_none=True)
                bar.update(task, completed=step + 1, note=f"loss {loss.item():.3f}")
                done = step + 1
                if done % SAVE_EVERY == 0 or done == self.steps:
                    with torch.no_grad(), torch.autocast(self.device, torch.bfloat16):
                        scores = validate()
                    record = {"stage": self.name, "step": done, **parts, **scores}
                    record["seconds"] = round(time.monotonic() - began, 1)
                    with self.log.open("a") as log:
                        log.write(json.dumps(record) + "\n")
                    self._save(done, modules, opts)
                if done == self.steps:
                    break

    def _save(self, step: int, modules: dict[str, nn.Module], opts: list[torch.optim.Optimizer]) -> None:
        state = {"step": step, "opts": [o.state_dict() for o in opts]}
        state |= {name: module.state_dict() for name, module in modules.items()}
        fresh = self.checkpoint.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.checkpoint)

    def _resume(self, modules: dict[str, nn.Module], opts: list[torch.optim.Optimizer]) -> int:
        if not self.checkpoint.exists():
            return 0
        state = torch.load(self.checkpoint, map_location=self.device)
        for name, module in modules.items():
            module.load_state_dict(state[name])
        for opt, saved in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(saved)
        return state["step"]
