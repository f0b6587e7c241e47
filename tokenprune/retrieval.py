"""Page embeddings of document retrievers (ColPali, ColQwen2), merged before they are stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokenprune.api import select
from tokenprune.core.budget import Keep
from tokenprune.errors import BadInput
from tokenprune.methods.base import Method


def merge_pages(
    embeddings: Tensor,
    image: Tensor,
    valid: Tensor | None = None,
    *,
    keep: Keep | None = None,
    method: str | Method = "light_colpali",
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Merge the patch vectors of indexed pages, so that fewer have to be stored and compared.

    embeddings: [B, L, d], `model(**inputs).embeddings` of a ColPali or ColQwen2. image: bool [B, L], which of them are
    patches: `inputs["input_ids"] == model.config.image_token_id`. valid: [B, L], the attention mask; default: all.
    keep and options go to the method, any that reads `features` alone (default: Light-ColPali, a ninth).

    Returns vectors [B, K, d], unit rows: what is left of the patches, then the other valid tokens; and bool [B, K],
    False for padding, whose vectors are zero and never win a maximum of positive similarities.
    Raises `BadInput` where shapes do not fit or a page has no patches.
    """
    if embeddings.ndim != 3 or image.shape != embeddings.shape[:2]:
        raise BadInput(
            f"embeddings {list(embeddings.shape)} and image {list(image.shape)} do not fit: expected [B, L, d], [B, L]."
        )
    valid = torch.ones_like(image, dtype=torch.bool) if valid is None else valid.bool()
    pages = []
    for vectors, patches, real in zip(embeddings, image.bool() & valid, valid, strict=True):
        if not patches.any():
            raise BadInput("A page has no patch vectors. Pass pages only, not questions.")
        chosen = select(method, keep=keep, features=vectors[patches], **options)
        merged = normalize(chosen.apply(vectors[patches]), dim=-1)
        pages.append(torch.cat([merged, vectors[real & ~patches]]))
    lengths = torch.tensor([len(page) for page in pages], device=embeddings.device)
    padded = torch.nn.utils.rnn.pad_sequence(pages, batch_first=True)
    return padded, torch.arange(padded.shape[1], device=embeddings.device) < lengths[:, None]
