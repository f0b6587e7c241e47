"""What a pruned run must equal: the full-length, unpatched model with the dropped columns hidden from a layer on.

Written without any code of the package, so that the two can disagree.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.tiny import Tiny


def oracle_logits(
    family: Tiny,
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    stages: dict[int, list[Tensor]],
    compact: bool = False,
    merges: dict[int, list[tuple[int, Tensor, Tensor, Tensor]]] | None = None,
    bypass: tuple[int, int] | None = None,
    steps: dict[int, list[list[Tensor] | None]] | None = None,
) -> Tensor:
    """Logits [B, L, V]. stages: layer -> for each row the columns of the visual tokens (and of the separators between
    them) still there from it on. Who sees whom is the model's own mask; columns are only ever taken away from it.

    merges: layer -> (row, columns that go in, columns that stay, weights): mixtures of hidden states at that layer's
    input. bypass: tokens gone between two layers come back as they were. steps: column of a decoding step -> for each
    layer, for each row the columns of the visual tokens (and separators) that it looks at; None: all there are.
    """
    merges, steps = merges or {}, steps or {}
    waiting: dict[str, Tensor] = {}
    ids = inputs["input_ids"]
    batch, length = ids.shape
    valid = inputs["attention_mask"].bool()
    visual = torch.isin(ids, torch.tensor(family.placeholder))
    text_model = family.text_model(model)
    seen: dict[str, Tensor] = {}
    left: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}  # stages passed -> what is alive, and where
    handles = [
        text_model.register_forward_pre_hook(
            lambda m, a, k: _see(seen, k, length, merges, family.axes), with_kwargs=True
        )
    ]

    def hide(i: int):
        def hook(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            alive, positions = valid, seen["positions"]
            back = bypass is not None and i >= bypass[1]
            hidden = args[0].clone()
            if bypass is not None and i == bypass[0]:
                waiting["hidden"] = hidden.clone()
            if bypass is not None and i == bypass[1]:
                for row in range(batch):
                    gone = visual[row].clone()
                    gone[stages[bypass[0]][row]] = False
                    hidden[row, gone] = waiting["hidden"][row, gone]
            for row, sources, kept, weights in merges.get(i, []):
                hidden[row, kept] = weights @ hidden[row, sources]
            passed = tuple(sorted(s for s in stages if s <= i and not (back and s in bypass)))
            if passed not in left:
                for at in passed:
                    before, alive = alive, valid & ~visual
                    for row in range(batch):
                        alive[row, stages[at][row]] = True
                    if compact:
                        positions = _renumbered(positions, alive, visual, before)
                left[passed] = alive, positions
            alive, positions = left[passed]
            own = kwargs["attention_mask"]
            own = (
                torch.ones(length, length).tril().bool()
                if own is None
                else own
                if own.dtype == torch.bool
                else own == 0
            )
            allowed = own & alive[:, None, None]
            for column, layers in steps.items():
                for row, columns in enumerate(layers[i] or []):
                    looked = ~visual[row]
                    looked[columns] = True
                    allowed[row, :, column] &= looked
            allowed |= torch.eye(length).bool()
            mask = torch.zeros(allowed.shape, dtype=args[0].dtype)
            changed = {"attention_mask": mask.masked_fill(~allowed, torch.finfo(mask.dtype).min)}
            if compact:
                ids = positions[0] if len(positions) == 1 else positions
                kinds = getattr(text_model.config, "layer_types", None)
                own_rope = (kinds[i],) if family.name == "gemma3" else ()
                changed["position_embeddings"] = text_model.rotary_emb(args[0], ids, *own_rope)
            return (hidden, *args[1:]), kwargs | changed

        return hook

    handles += [layer.register_forward_pre_hook(hide(i), with_kwargs=True) for i, layer in enumerate(text_model.layers)]
    try:
        with torch.no_grad():
            return model(**inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def _see(seen: dict[str, Tensor], kwargs: dict, length: int, merges: dict, axes: int) -> tuple[tuple, dict] | None:
    """Note the position ids; planes that are added after later layers are mixed like the tokens themselves."""
    given = kwargs.get("position_ids")
    given = torch.arange(length)[None] if given is None else given
    given = given[None] if given.ndim == 2 else given
    seen["positions"] = given[1:] if len(given) == axes + 1 else given
    planes = kwargs.get("deepstack_visual_embeds")
    if not planes or not merges:
        return None
    mask = kwargs["visual_pos_masks"]
    order = (mask.flatten().cumsum(0) - 1).view_as(mask)
    planes = [plane.clone() for plane in planes]
    for layer, plane in enumerate(planes):
        for at in sorted(at for at in merges if at <= layer):
            for row, sources, kept, weights in merges[at]:
                plane[order[row, kept]] = weights @ plane[order[row, sources]]
    return (), kwargs | {"deepstack_visual_embeds": planes}


def _renumbered(positions: Tensor, alive: Tensor, visual: Tensor, before: Tensor) -> Tensor:
    """Token by token, in plain Python: text runs keep their steps, a run of visual tokens closes its gaps."""
    axes = len(positions)
    result = positions.expand(axes, len(alive), -1).clone()
    for row in range(len(alive)):
        columns = [c for c in range(alive.shape[1]) if before[row, c]]
        old = result[:, row].clone()
        shift = 0
        for is_image, run in groupby(columns, key=lambda c: bool(visual[row, c])):
            run = list(run)
            if not is_image:
                for c in run:
                    result[:, row, c] = old[:, c] - shift
                continue
            low, high = int(old[:, run].min()), int(old[:, run].max())
            largest = low - 1
            for axis in range(axes):
                used = sorted({int(old[axis, c]) for c in run})
                kept = sorted({int(old[axis, c]) for c in run if alive[row, c]})
                new, at = {}, low
                for i, value in enumerate(kept):
                    at += 0 if i == 0 else value - used[used.index(value) - 1]
                    new[value] = at
                for c in run:
                    if alive[row, c]:
                        result[axis, row, c] = new[int(old[axis, c])] - shift
                largest = max([largest, *new.values()])
            shift += high - largest
    return result
