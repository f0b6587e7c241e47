"""What goes into a product of tiles."""

from __future__ import annotations

import os

import triton
import triton.language as tl

# Triton's interpreter multiplies the bits of bfloat16 as if they were whole numbers.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def operand(x):
    """Half precision as it is: its products are exact in the float32 that they are summed in."""
    if INTERPRETED:
        x = x.to(tl.float32)
    return x
