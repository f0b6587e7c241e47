from __future__ import annotations

import os
import sys

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


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""
    from tokenprune import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tokenprune", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def packed_tasks(tmp_path_factory):
    """The Scenes question sets as lmms-eval tasks, a few questions each; datasets keep their cache beside them."""
    import datasets

    from eval.tasks.pack import main

    folder = tmp_path_factory.mktemp("tasks")
    datasets.config.HF_DATASETS_CACHE = str(folder / "cache")
    main(folder / "tasks", count=2, video_count=1)
    return folder / "tasks"
