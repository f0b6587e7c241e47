"""Stages before and inside the vision encoder: choose groups, and let every block see what is left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from tokenprune.core.merging import weighted_sums
from tokenprune.engine.encoder_call import BlockWork, EncoderCall, EncoderRecord, EncoderWork
from tokenprune.engine.encoder_choice import Choice, Mixture, choose
from tokenprune.engine.encoder_rows import EncoderRows, gather_each
from tokenprune.engine.encoder_taps import EncoderTaps
from tokenprune.engine.overrides import Hook
from tokenprune.engine.returning import Returning
from tokenprune.engine.stopwatch import Stopwatch
from tokenprune.errors import Unsupported
from tokenprune.families.base import Encoded, Family, attention_of, mlp_of
from tokenprune.methods.base import Method
from tokenprune.methods.place import EncoderPlace, Pixels
from tokenprune.methods.stage import Stage
from tokenprune.signals import taps


class EncoderStages:
    """Hooks on the blocks of a vision encoder that shorten its rows, and on its end, where all rows come back.

    What calls the encoder sees its usual shapes: rows of groups that are gone hold what stands for them. Which groups
    are left is told by `EncoderWork.stages`, and taken out of the prompt before the LLM.
    """

    def __init__(
        self, model: PreTrainedModel, family: Family, stages: Sequence[Stage], active: Callable[[], bool]
    ) -> None:
        """active: whether this thread's calls are pruned now."""
        self.model, self.family, self.active = model, family, active
        self.stages = sorted(stages, key=lambda stage: stage.place.order)
        self._placed = [(stage.place, stage) for stage in self.stages if isinstance(stage.place, EncoderPlace)]
        able = [media for media in family.getters if family.whole_encoder(model, media) is None]
        self.taps = EncoderTaps(model, family, self._placed)
        self.media = {media: family.encoder_blocks(model, media) for media in able} if stages else {}
        self.spared: Collection[nn.Module] = ()  # blocks that do not run
        self._local = threading.local()
        self._handles: list[RemovableHandle] = []

    @property
    def call(self) -> EncoderCall | None:
        """The call that this thread is in."""
        return getattr(self._local, "call", None)

    def attach(self) -> None:
        """Put the hooks on the blocks."""
        done: set[int] = set()
        for blocks in self.media.values():
            if id(blocks.blocks) in done:
                continue
            done.add(id(blocks.blocks))
            if blocks.embed is not None:
                hook = Hook(self._before_embedding)
                self._handles.append(blocks.embed.register_forward_pre_hook(hook, with_kwargs=True))
                self._handles.append(blocks.embed.register_forward_hook(Hook(self._after_embedding), prepend=True))
            for i in range(len(blocks.blocks)):
                block, attention = blocks.blocks[i], attention_of(blocks.blocks[i])
                hook = Hook(self._before_block(i, attention))
                self._handles.append(block.register_forward_pre_hook(hook, with_kwargs=True, prepend=True))
                if blocks.embed is None:  # pictures and tiles are sequences side by side
                    hook = Hook(self._before_attention)
                    self._handles.append(attention.register_forward_pre_hook(hook, with_kwargs=True))
            self._handles += self.taps.attach(blocks, lambda: self.call)
            for i in range(len(blocks.blocks)) if self._whole_blocks else ():
                mlp = mlp_of(blocks.blocks[i])
                self._handles.append(mlp.register_forward_pre_hook(Hook(self._before_mlp)))
                self._handles.append(mlp.register_forward_hook(Hook(self._after_mlp)))
            for module in blocks.exits:
                self._handles.append(module.register_forward_pre_hook(Hook(self._before_exit)))
                self._handles.append(module.register_forward_hook(Hook(self._after_exit), prepend=True))
            if not blocks.exits:
                last = blocks.blocks[blocks.last]
                self._handles.append(last.register_forward_hook(Hook(self._after_last), prepend=True))

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def encoding(self, encoded: Encoded) -> Iterator[EncoderCall | None]:
        """While this is open, the encoder runs for this call of a getter. None where there are no stages."""
        if not self.stages or not self.active():
            yield None
            return
        if encoded.media not in self.media:
            raise Unsupported(
                f"{self.family.name} takes no stage before or inside the vision encoder in a prompt with a "
                f"{encoded.media}: {self.family.whole_encoder(self.model, encoded.media)}"
            )
        work = EncoderWork(Stopwatch(self.model.device))
        call = self._local.call = EncoderCall(encoded, work, self._flash)
        try:
            yield call
        finally:
            work.watch.stop()
            call.end()
            self._local.call = None

    @property
    def _whole_blocks(self) -> bool:
        """Whether in some blocks attention sees more rows than the MLP."""
        return any(stage.method.whole_blocks for stage in self.stages)

    def attention(self) -> list[nn.Module]:
        """The attention modules whose calls are looked at."""
        return [attention_of(block) for blocks in self.media.values() for block in blocks.blocks]

    def _before_block(self, i: int, attention: nn.Module) -> Any:
        stages = [(place, stage) for place, stage in self._placed if place.block == i]

        def before_block(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
            call = self.call
            if call is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            x = hidden if hidden.ndim == 3 else hidden[None]
            if call.laid is None:
                self._lay_out(call, tuple(x.shape[:2]), x.device)
            done = len(call.history) if i == 0 else 0
            if done and call.rows.shortened:
                x = call.rows.shorten(x)
            x = call.only_left(x)
            for place, stage in stages[done:]:
                x = self._run(call, place, stage, x)
            self.taps.before_block(call, i, attention, x)
            x = self._rows_to_attend(call, i, x)
            seen = call.seen
            back = x.shape[1] == seen.shape[1]
            cuts = kwargs.get("cu_seqlens")
            own = cuts if cuts is None or back else seen.follow(cuts)
            dense = seen.shape if cuts is None else cuts
            ran = (x.shape[0], x.shape[1]) if own is None else own
            mlp_rows = None if call.attending is None else sum(call.rows.lengths)
            call.work.blocks.append(BlockWork(module, dense, (0, 0) if module in self.spared else ran, mlp_rows))
            if back:
                same = not stages and call.returning is None
                return None if same else self._with_hidden(x, args, kwargs, hidden)
            args, kwargs = self._with_hidden(x, args, kwargs, hidden)
            args = (*args[:1], *(seen.follow(value) for value in args[1:]))
            kwargs = {name: value if name == "hidden_states" else seen.follow(value) for name, value in kwargs.items()}
            if own is not None and not call.flash:
                kwargs |= self._attend_at_once(call, attention, own)
            return args, kwargs

        return before_block

    @staticmethod
    def _attend_at_once(call: EncoderCall, attention: nn.Module, bounds: Tensor) -> dict[str, Tensor]:
        """Other boundaries for a block that would call its kernel for one sequence after the other."""
        segments = call.seen.segments(bounds)
        if segments is None:
            return {}
        taps.batches()[attention] = segments
        call.touched.append(attention)
        return {"cu_seqlens": segments.whole}

    @staticmethod
    def _rows_to_attend(call: EncoderCall, i: int, x: Tensor) -> Tensor:
        """The rows that attention in block i works on, [B, K', d], from those that are left [B, K, d]."""
        back = call.returning
        call.attending = back.before if back is not None and i < back.until and call.rows.shortened else None
        return x if call.attending is None else call.attending.shorten(call.bring_back(x))

    def _before_mlp(self, module: nn.Module, args: tuple) -> tuple | None:
        """What comes back later does without an MLP."""
        call = self.call
        if call is None or call.attending is None:
            return None
        x = args[0] if args[0].ndim == 3 else args[0][None]
        own = gather_each(x, call.rows.index_in(call.attending))
        return (own.view(*own.shape[-args[0].ndim :]), *args[1:])

    def _after_mlp(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        call = self.call
        if call is None or call.attending is None:
            return None
        x = output if output.ndim == 3 else output[None]
        index = call.rows.index_in(call.attending)[..., None].expand_as(x)
        whole = x.new_zeros(len(x), call.attending.index.shape[1], x.shape[-1]).scatter(1, index, x)
        return whole.view(*whole.shape[-output.ndim :])

    def _lay_out(self, call: EncoderCall, shape: tuple[int, int], device: torch.device) -> None:
        call.laid = EncoderRows.of_call(self.family.groups(self.model, call.encoded, shape), shape, device)

    def _before_embedding(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        """Where patches come as rows, those that stages before the encoder leave out are not even embedded."""
        call = self.call
        stages = [stage for place, stage in self._placed if isinstance(place, Pixels)]
        if call is None or call.laid is not None or not stages:
            return None
        pixels = args[0] if args else kwargs["hidden_states"]
        self._lay_out(call, (1, len(pixels)), pixels.device)
        for stage in stages:
            watch = Stopwatch(pixels.device)
            choice = choose(stage, call.rows, self.taps.inside(call, None))
            if choice.mixed:  # of embedded patches
                call.ahead = choice, watch
                break
            self._take(call, stage.method, choice, watch)
        if not call.rows.shortened:
            return None
        own = pixels[call.rows.patches]
        return ((own, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": own})

    def _after_embedding(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """What comes before the first block sees its usual shapes."""
        call = self.call
        if call is None or not call.shortened or len(output) == call.rows.shape[1]:
            return None
        return output.new_zeros(call.rows.shape[1], *output.shape[1:]).index_copy(0, call.rows.patches, output)

    def _run(self, call: EncoderCall, place: EncoderPlace, stage: Stage, x: Tensor) -> Tensor:
        """Choose at a stage; the rows [B, K', d] that are left of x [B, K, d]."""
        rows = call.rows
        if call.ahead is None:
            watch = Stopwatch(x.device)
            choice = choose(stage, rows, self.taps.inside(call, x))
        else:
            (choice, watch), call.ahead = call.ahead, None
        whole = rows.restore(x)
        for groups, kept, weights in choice.mixed:
            members = rows.members[groups]
            flat = whole.flatten(0, 1)
            parts = flat[members.flatten()].view(*members.shape, -1)  # [n, u, d]: patch by patch
            sums = weighted_sums(weights, parts.flatten(1)).view(len(kept), *parts.shape[1:])
            whole = flat.index_put((members[kept],), sums.to(flat.dtype)).view_as(whole)
        if choice.neighbours is not None:
            until = place.block + stage.method.whole_blocks
            call.returning = Returning(rows, whole, choice.neighbours, until)
        self._take(call, stage.method, choice, watch)
        if call.rows.shortened:
            return call.rows.shorten(whole)
        # In the strides it came in: products of others are rounded otherwise.
        return x if whole is x else torch.empty_like(x).copy_(whole)

    def _take(self, call: EncoderCall, method: Method, choice: Choice, watch: Stopwatch) -> None:
        """What is left goes on."""
        before = call.rows
        sizes = before.sizes
        if method.weighs_sizes and choice.mixed:
            sizes = merged_sizes(before, choice.mixed)
        call.laid = before.take(choice.alive, choice.counts, choice.stands, sizes)
        call.history.append(call.rows)
        watch.stop()
        told = before.alive if method.returns else choice.alive
        call.work.stages.append(EncoderRecord(before.counts, choice.counts, told, watch))

    @staticmethod
    def _with_hidden(x: Tensor, args: tuple, kwargs: dict, hidden: Tensor) -> tuple[tuple, dict]:
        """The arguments of a block with x [B, K, d] for its states, in the shape they came in."""
        x = x if hidden.ndim == 3 else x[0]
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

    def _before_attention(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        """Where sequences are of different lengths now, what fills them up is hidden."""
        call = self.call
        hidden = args[0] if args else kwargs["hidden_states"]
        if call is None or call.laid is None or call.seen.padding is None or hidden.shape[1] == call.seen.shape[1]:
            return None
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        if call.flash or not (mask is None or isinstance(mask, Tensor)):
            raise Unsupported(
                f"Pictures or tiles of one call keep different numbers of tokens ({call.seen.lengths} rows), which "
                "this attention kernel cannot take together. Give keep= (a share of each), one picture at a time, or "
                "load the model with attn_implementation='sdpa'."
            )
        hide = hidden.new_zeros(len(hidden), 1, 1, hidden.shape[1])
        hide = hide.masked_fill(call.seen.padding[:, None, None], torch.finfo(hidden.dtype).min)
        if mask is not None:
            hide = hide.masked_fill(~mask, hide.min()) if mask.dtype == torch.bool else torch.minimum(mask, hide)
        return ((hidden, hide, *args[2:]), kwargs) if len(args) > 1 else (args, kwargs | {"attention_mask": hide})

    @property
    def _flash(self) -> bool:
        return "flash" in (getattr(self.model.config.vision_config, "_attn_implementation", "") or "")

    def _before_exit(self, module: nn.Module, args: tuple) -> tuple | None:
        """Rows that come back are there for what follows the blocks, and for features that are taken in between."""
        call = self.call
        if call is None or call.returning is None or not call.shortened:
            return None
        x = args[0] if args[0].ndim == 3 else args[0][None]
        whole = call.bring_back(call.only_left(x))
        return (whole.view(*whole.shape[-args[0].ndim :]), *args[1:])

    def _after_exit(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        call = self.call
        if call is None or not call.shortened or len(output) == len(call.rows.alive):
            return None
        return call.rows.restore_groups(output)

    def _after_last(self, module: nn.Module, args: tuple, output: Any) -> Any:
        call = self.call
        if call is None or not call.shortened:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        x = call.bring_back(call.only_left(hidden if hidden.ndim == 3 else hidden[None]))
        x = x.view(*x.shape[-hidden.ndim :])
        return (x, *output[1:]) if isinstance(output, tuple) else x


def merged_sizes(rows: EncoderRows, mixed: list[Mixture]) -> Tensor:
    """float32 [G]: how many groups each one stands for, once means have taken in others."""
    sizes = torch.ones(len(rows.alive), device=rows.alive.device) if rows.sizes is None else rows.sizes.clone()
    for groups, kept, weights in mixed:
        sizes[groups[kept]] = (weights > 0).float() @ sizes[groups]
    return sizes
