"""tokenprune: the same answers from a fraction of the visual tokens."""

from tokenprune.api import prune, select
from tokenprune.attach.report import Report
from tokenprune.attach.run import Run
from tokenprune.core.selection import Selection
from tokenprune.errors import BadInput, MissingSignal, TokenpruneError, Unsupported
from tokenprune.methods.divprune import DivPrune
from tokenprune.methods.fastv import FastV
from tokenprune.methods.fopru import FoPru
from tokenprune.methods.random import Random
from tokenprune.methods.stage import Stage
from tokenprune.methods.uniform import Uniform
from tokenprune.version import VERSION

__version__ = VERSION
__all__ = [
    "BadInput",
    "DivPrune",
    "FastV",
    "FoPru",
    "MissingSignal",
    "Random",
    "Report",
    "Run",
    "Selection",
    "Stage",
    "TokenpruneError",
    "Uniform",
    "Unsupported",
    "prune",
    "select",
]
