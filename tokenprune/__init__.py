"""tokenprune: the same answers from a fraction of the visual tokens."""

from tokenprune.api import prune, select, stream
from tokenprune.attach.report import Report
from tokenprune.attach.run import Run
from tokenprune.attach.stream import Stream
from tokenprune.core.selection import Selection
from tokenprune.errors import BadInput, MissingSignal, TokenpruneError, Unsupported
from tokenprune.methods.adaptinfer import AdaptInfer
from tokenprune.methods.agilepruner import AgilePruner
from tokenprune.methods.cdpruner import CDPruner
from tokenprune.methods.coarse_to_fine import CoarseToFine
from tokenprune.methods.dart import DART
from tokenprune.methods.divprune import DivPrune
from tokenprune.methods.downsample import Downsample
from tokenprune.methods.dycoke import DyCoke
from tokenprune.methods.dycoke_kv import DyCokeKV
from tokenprune.methods.efficientvla import EfficientVLA
from tokenprune.methods.evs import EVS
from tokenprune.methods.fastervlm import FasterVLM
from tokenprune.methods.fastocr import FastOCR
from tokenprune.methods.fastv import FastV
from tokenprune.methods.fastvid import FastVID
from tokenprune.methods.feather import FEATHER
from tokenprune.methods.flashvid import FlashVID
from tokenprune.methods.fopru import FoPru
from tokenprune.methods.framefusion import FrameFusion
from tokenprune.methods.hired import HiRED
from tokenprune.methods.holitom import HoliTom
from tokenprune.methods.holov import HoloV
from tokenprune.methods.light_colpali import LightColPali
from tokenprune.methods.llava_scissor import LlavaScissor
from tokenprune.methods.lvlm_csp import LVLMCSP
from tokenprune.methods.prumerge import PruMerge
from tokenprune.methods.prunevid import PruneVid
from tokenprune.methods.pyramiddrop import PyramidDrop
from tokenprune.methods.quota import QuoTA
from tokenprune.methods.random import Random
from tokenprune.methods.sparsevlm import SparseVLM
from tokenprune.methods.stage import Stage
from tokenprune.methods.star import STAR
from tokenprune.methods.streamvln import StreamVLN
from tokenprune.methods.todre import ToDRE
from tokenprune.methods.token_transforming import TokenTransforming
from tokenprune.methods.tome import ToMe
from tokenprune.methods.uniform import Uniform
from tokenprune.methods.vflowopt import VFlowOpt
from tokenprune.methods.vidcom2 import VidCom2
from tokenprune.methods.visionzip import VisionZip
from tokenprune.methods.vispruner import VisPruner
from tokenprune.recipes import Recipe, load_recipe
from tokenprune.retrieval import merge_pages
from tokenprune.search import search_layers
from tokenprune.version import VERSION
from tokenprune.video import load_video

__version__ = VERSION
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
    "load_recipe",
    "load_video",
    "merge_pages",
    "prune",
    "search_layers",
    "select",
    "stream",
]
