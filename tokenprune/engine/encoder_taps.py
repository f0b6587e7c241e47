"""What stages inside the vision encoder read: their own rows, and the block before them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from tokenprune.engine.encoder_call import EncoderCall
from tokenprune.engine.overrides import Hook
from tokenprune.families.base import EncoderBlocks, Family, attention_of, head_mean, key_projection
from tokenprune.methods.place import EncoderPlace
from tokenprune.methods.stage import Stage
from tokenprune.signals import taps
from tokenprune.signals.encoder import read_saliency
from tokenprune.signals.inside import Inside
from tokenprune.signals.need import Need


class EncoderTaps:
    """Notes in a call what the stage behind a block reads of it, and lets attention weigh means."""

    def __init__(self, model: PreTrainedModel, family: Family, placed: Sequence[tuple[EncoderPlace, Stage]]) -> None:
        self.model, self.family = model, family
        self._needs: dict[int, list[Need]] = {}  # by block, of the stages behind it
        for place, stage in placed:
            self._needs.setdefault(place.block - 1, []).extend(stage.method.needs)

    def _of(self, i: int, signal: str) -> list[Need]:
        return [need for need in self._needs.get(i, ()) if need.signal == signal]

    def attach(self, blocks: EncoderBlocks, call: Callable[[], EncoderCall | None]) -> list[RemovableHandle]:
        """Put the hooks on that keys need; their handles. call: the one that this thread is in."""
        handles = []
        for i in range(len(blocks.blocks)):
            if not self._of(i, "vision_keys"):
                continue
            attention = attention_of(blocks.blocks[i])

            def note(module: nn.Module, args: tuple, output: Tensor, attention: nn.Module = attention) -> None:
                now = call()
                if now is not None:
                    x = output if output.ndim == 3 else output[None]
                    now.noted["vision_keys"] = now.seen.restore(head_mean(attention, x))

            handles.append(key_projection(attention).register_forward_hook(Hook(note)))
        return handles

    def before_block(self, call: EncoderCall, i: int, attention: nn.Module, x: Tensor) -> None:
        """Get ready for what is read of block i. x: [B, K, d], its input."""
        if i in self._needs:
            call.noted.clear()
            if self._of(i, "vision_changes"):
                call.noted["states"] = call.rows.restore(x)
            wanted = self._of(i, "saliency")
            if wanted:
                call.heard = {need: [] for need in wanted}
                call.hear(attention, self._listener(call))
        if call.rows.sizes is not None:
            taps.adjusters()[attention] = Proportional(call.rows.row_sizes)
            call.touched.append(attention)

    @staticmethod
    def _listener(call: EncoderCall) -> taps.Listener:
        def listen(query: Tensor, key: Tensor, scaling: float, mask: Any, softcap: float) -> None:
            for need, found in call.heard.items():
                found.append(read_saliency(query, key, scaling, mask, need))

        return listen

    def inside(self, call: EncoderCall, x: Tensor | None) -> Inside:
        """What a stage can read. x: [B, K, d], the rows that are left; None before they are embedded."""
        rows = call.rows

        def of_groups(whole: Tensor) -> Tensor:
            return whole.flatten(0, 1)[rows.members]

        def states() -> Tensor:
            assert x is not None, "Stage lets no method stand before the encoder that reads its states"
            return of_groups(rows.restore(x))

        def attention(need: Need) -> Tensor:
            paid = torch.cat([x.flatten(0, 1) for x in call.restore(call.heard[need])])
            return paid[rows.members]

        def sizes() -> Tensor:
            return torch.ones(len(rows.alive), device=rows.alive.device) if rows.sizes is None else rows.sizes

        return Inside(
            pixels=lambda: self._brightness(call),
            states=states,
            before=lambda: of_groups(call.noted["states"]),
            keys=lambda: of_groups(call.noted["vision_keys"]),
            attention=attention,
            sizes=sizes,
        )

    def _brightness(self, call: EncoderCall) -> Tensor:
        """float32 [G, x]: pixels of each group, of brightness from 0 to 1 up to what is the same for all."""
        rows = call.rows
        pixels = self.family.group_pixels(self.model, call.encoded, rows.groups).to(rows.alive.device).float()
        channels = pixels.unflatten(1, (rows.members.shape[1], 3, -1))
        return (channels * channels.new_tensor(self.family.pixel_std)[:, None]).flatten(1)


class Proportional:
    """Attention to a mean as to all that it stands for: the logarithm of its size is added to every product with it, by
    one value more in queries and keys, so that any kernel will do (ToMe's proportional attention).

    sizes: float32 [B, K], of each row. Kernels may be called for one stretch of the rows after the other.
    """

    WIDER = 8  # kernels want heads whose width is a multiple of it

    def __init__(self, sizes: Tensor) -> None:
        self._logs, self._start = sizes.log().flatten(), 0

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
        """Wider queries, keys and values [N, H, rows, e]."""
        sequences, _, rows, _ = key.shape
        own = self._logs[self._start : self._start + sequences * rows].view(sequences, 1, rows)
        self._start += sequences * rows
        query, key, value = (nn.functional.pad(x, (0, self.WIDER)) for x in (query, key, value))
        query[..., -self.WIDER], key[..., -self.WIDER] = 1 / scaling, own.to(key.dtype)
        return query, key, value
