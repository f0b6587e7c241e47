"""DyCoke, the second stage: every decoding step looks at the visual tokens that it attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.core.budget import Keep
from tokenprune.methods.base import keep_option, rounding_option
from tokenprune.methods.decoding import DecodingMethod
from tokenprune.methods.origin import Difference, Origin


@dataclass(frozen=True)
class DyCokeKV(DecodingMethod):
    """DyCoke's dynamic pruning while decoding (Tao et al., CVPR 2025, arXiv 2411.15024).

    At every step the head-mean attention of the new token to the visual tokens in layer `start` - 1 is compared with
    that of the step before. Below a cosine of `alike`, layers from `start` on look at the int(n * keep) most attended
    visual tokens and at all text; else the choice stands (the paper), or the step looks at everything
    (`otherwise="full"`, the code). Nothing is lost: a token can come back at any step.

    The published code gathers the whole cache in every layer and step, counts one token too few, compares the first
    step with the last one of the sample before, and works for one sample. Its defaults contradict each other (0.7 and
    0.8 pruned); 0.7 is the paper's.
    """

    name: ClassVar[str] = "dycoke_kv"
    paper: ClassVar[str] = "arXiv 2411.15024"
    year: ClassVar[int] = 2025
    kind: ClassVar[str] = "decoding, video"
    origin: ClassVar[Origin] = Origin("code", "KD-TAO/DyCoke", "dd746349")
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "a step that is like the one before keeps its choice",
            "so the paper; the code then looks at everything",
            {"otherwise": "full"},
        ),
        Difference("0.7 is pruned", "so the paper; the code's own default is 0.8", {"keep": 0.2}),
        Difference(
            "every prompt starts anew, and all visual tokens are counted",
            "the code compares with the last sample's step and counts one token too few",
        ),
    )
    default_start: ClassVar[int] = 3

    keep: Keep = keep_option(0.3, "which visual tokens a step looks at: a fraction, or a number of tokens")
    rounding: str = rounding_option("down")
