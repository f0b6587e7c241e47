from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

from tests.tiny import FAMILIES

torch.set_num_threads(1)
# How long an example takes says nothing on a machine that others use too.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(params=[name for name, family in FAMILIES.items() if family.has_video])
def video_family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="session")
def tiny_models():
    """One model per family and attention kernel; tests must leave them as they found them."""
    built = {}

    def get(family, attention="sdpa"):
        key = family.name, attention
        if key not in built:
            built[key] = family.build(attention)
        return built[key]

    return get
