"""A model run afresh on what a stream remembers. Nothing here is the stream's: positions are counted again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.tiny import Picture
from tests.tiny.talk import TalkProcessor


@dataclass
class Shown:
    """A frame: its picture and seed, and which of its visual tokens are left."""

    picture: Picture
    seed: int
    left: list[int]


@torch.inference_mode()
def fresh(model: PreTrainedModel, processor: TalkProcessor, pieces: list[list[int] | Shown]) -> Tensor:
    """Logits [V] after the last token of a conversation: lists of text tokens, and frames."""
    tiny = processor.tiny
    text_model = tiny.text_model(model)
    mrope = hasattr(model.base_model, "get_rope_index")
    rows, places, seen, planes, end = [], [], [], [], 0
    for piece in pieces:
        if isinstance(piece, list):
            rows.append(model.get_input_embeddings()(torch.tensor(piece)))
            places += [(end + i,) * 3 for i in range(len(piece))]
            seen += [False] * len(piece)
            end += len(piece)
            continue
        given = embedded(model, processor, piece)
        ids = torch.tensor(processor.ids(piece.picture))
        visual = torch.isin(ids, torch.tensor(tiny.placeholder[:1]))
        stays = ~visual
        stays[visual.nonzero().flatten()[piece.left]] = True
        rows.append(given["inputs_embeds"][0][stays])
        seen += visual[stays].tolist()
        if given.get("deepstack_visual_embeds") is not None:
            planes.append([plane[piece.left] for plane in given["deepstack_visual_embeds"]])
        if mrope:
            where = [(0, *divmod(i, piece.picture.w)) for i in piece.left]
            ranks = [np.unique(axis, return_inverse=True)[1] for axis in zip(*where, strict=True)]
            places += [tuple(int(end + rank[i]) for rank in ranks) for i in range(len(where))]
            end = max(max(place) for place in places[-len(where) :]) + 1
        else:
            count = int(stays.sum())
            places += [(end + i,) * 3 for i in range(count)]
            end += count
    position_ids = torch.tensor(places).T
    extra = {}
    if planes:
        extra["visual_pos_masks"] = torch.tensor([seen])
        extra["deepstack_visual_embeds"] = [torch.cat(one) for one in zip(*planes, strict=True)]
    given = position_ids[:, None] if mrope else position_ids[:1]
    out = text_model(inputs_embeds=torch.cat(rows)[None], position_ids=given, use_cache=False, **extra)
    return model.get_output_embeddings()(out.last_hidden_state[0, -1])


def embedded(model: PreTrainedModel, processor: TalkProcessor, shown: Shown) -> dict:
    """What the text model is given for one frame by itself."""
    found: list[dict] = []
    hook = processor.tiny.text_model(model).register_forward_pre_hook(
        lambda module, args, kwargs: found.append(kwargs), with_kwargs=True
    )
    batch = {"input_ids": torch.tensor([processor.ids(shown.picture)])}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    with hook:
        model(**batch, **processor.media(shown.picture, shown.seed), **processor.tiny.extra(batch), use_cache=False)
    return found[0]
