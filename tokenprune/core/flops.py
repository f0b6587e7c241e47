"""Operations of a prefill, counted from what was run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerShape:
    """What one decoder layer, or block of a vision encoder, costs: parameters of its linear maps, and the width of its
    attention (heads x dim)."""

    linear_params: int
    attention_width: int


def layer_flops(shape: LayerShape, rows: int, past: int = 0) -> int:
    """Multiply-adds count as 2: linear maps on `rows` tokens, causal attention of them over themselves and `past`."""
    pairs = rows * (rows + 1) // 2 + rows * past
    return 2 * shape.linear_params * rows + 4 * shape.attention_width * pairs


def block_flops(shape: LayerShape, lengths: Sequence[int]) -> int:
    """The same for a block of a vision encoder on sequences of these lengths, in which every row sees every other."""
    return sum(2 * shape.linear_params * rows + 4 * shape.attention_width * rows**2 for rows in lengths)


def field_flops(tokens: Sequence[int], hidden: int, intermediate: int) -> int:
    """The papers' image-only formula, 4nd^2 + 2n^2d + 2ndm summed over layers (FastV).

    tokens: visual tokens that each layer processes; hidden: d; intermediate: m. It leaves out text, the third matrix
    of gated MLPs and grouped queries, so use it only to compare with published figures.
    """
    return sum(4 * n * hidden**2 + 2 * n**2 * hidden + 2 * n * hidden * intermediate for n in tokens)
