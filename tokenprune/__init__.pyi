# What `import tokenprune` offers, for type checkers and for the loader in __init__.py.

from .api import prune, select, stream
from .attach.report import Report
from .attach.run import Run
from .attach.stream import Stream
from .checking.check import Check, check
from .core.selection import Selection
from .errors import BadInput, MissingSignal, TokenpruneError, Unsupported
from .methods.adaptinfer import AdaptInfer
from .methods.agilepruner import AgilePruner
from .methods.cdpruner import CDPruner
from .methods.coarse_to_fine import CoarseToFine
from .methods.dart import DART
from .methods.divprune import DivPrune
from .methods.downsample import Downsample
from .methods.dycoke import DyCoke
from .methods.dycoke_kv import DyCokeKV
from .methods.efficientvla import EfficientVLA
from .methods.evs import EVS
from .methods.fastervlm import FasterVLM
from .methods.fastocr import FastOCR
from .methods.fastv import FastV
from .methods.fastvid import FastVID
from .methods.feather import FEATHER
from .methods.flashvid import FlashVID
from .methods.fopru import FoPru
from .methods.framefusion import FrameFusion
from .methods.hired import HiRED
from .methods.holitom import HoliTom
from .methods.holov import HoloV
from .methods.light_colpali import LightColPali
from .methods.llava_scissor import LlavaScissor
from .methods.lvlm_csp import LVLMCSP
from .methods.prumerge import PruMerge
from .methods.prunevid import PruneVid
from .methods.pyramiddrop import PyramidDrop
from .methods.quota import QuoTA
from .methods.random import Random
from .methods.sparsevlm import SparseVLM
from .methods.stage import Stage
from .methods.star import STAR
from .methods.streamvln import StreamVLN
from .methods.todre import ToDRE
from .methods.token_transforming import TokenTransforming
from .methods.tome import ToMe
from .methods.uniform import Uniform
from .methods.vflowopt import VFlowOpt
from .methods.vidcom2 import VidCom2
from .methods.visionzip import VisionZip
from .methods.vispruner import VisPruner
from .recipes import Recipe, load_recipe
from .retrieval import merge_pages
from .search import search_layers
from .video import load_video

__version__: str
__all__ = [
    "DART",
    "EVS",
    "FEATHER",
    "LVLMCSP",
    "STAR",
    "AdaptInfer",
    "AgilePruner",
    "BadInput",
    "CDPruner",
    "Check",
    "CoarseToFine",
    "DivPrune",
    "Downsample",
    "DyCoke",
    "DyCokeKV",
    "EfficientVLA",
    "FastOCR",
    "FastV",
    "FastVID",
    "FasterVLM",
    "FlashVID",
    "FoPru",
    "FrameFusion",
    "HiRED",
    "HoliTom",
    "HoloV",
    "LightColPali",
    "LlavaScissor",
    "MissingSignal",
    "PruMerge",
    "PruneVid",
    "PyramidDrop",
    "QuoTA",
    "Random",
    "Recipe",
    "Report",
    "Run",
    "Selection",
    "SparseVLM",
    "Stage",
    "Stream",
    "StreamVLN",
    "ToDRE",
    "ToMe",
    "TokenTransforming",
    "TokenpruneError",
    "Uniform",
    "Unsupported",
    "VFlowOpt",
    "VidCom2",
    "VisPruner",
    "VisionZip",
    "check",
    "load_recipe",
    "load_video",
    "merge_pages",
    "prune",
    "search_layers",
    "select",
    "stream",
]
