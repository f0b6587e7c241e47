"""The part of a cache that a decoding step looks at, copied out with room for what is to come."""

from __future__ import annotations

from torch import Tensor
from torch.library import custom_op

from tokenprune_kernels.dispatch import fused


@custom_op("tokenprune::gather_cache", mutates_args=())
def gather_cache(keys: Tensor, values: Tensor, index: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Rows `index` int64 [B, k] of keys and values [B, H, R, e]; each [B, H, k + room, e], undefined after the first k
    rows."""
    if fused(keys):
        from tokenprune_kernels.fused import retention

        return retention.gather_cache(keys, values, index, room)
    found = []
    for x in (keys, values):
        out = x.new_empty(*x.shape[:2], index.shape[1] + room, x.shape[3])
        at = index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
        out[:, :, : index.shape[1]] = x.gather(2, at)
        found.append(out)
    return found[0], found[1]


@gather_cache.register_fake
def _(keys: Tensor, values: Tensor, index: Tensor, room: int) -> tuple[Tensor, Tensor]:
    rows = index.shape[1] + room
    return (
        keys.new_empty(*keys.shape[:2], rows, keys.shape[3]),
        values.new_empty(*values.shape[:2], rows, values.shape[3]),
    )
