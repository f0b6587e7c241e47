from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

from eval.faithfulness import holdings
from tests.draw import SEED, everything
from tests.tiny import FAMILIES, Picture, Video
from tokenprune.methods.registry import method_class

torch.set_num_threads(1)
SHARED = {
    "the demo's server": ("test_demo",),
    "packed tasks": ("test_cells", "test_docs", "test_evaluation", "test_lmms_eval", "test_needs", "test_resume"),
    "installed packages": ("test_plugin",),
}
# How long an example takes says nothing on a machine that others use too.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="every case, not those alone that the seed draws")


def pytest_configure(config):
    if config.getoption("--all"):
        os.environ["TP_ALL"] = "1"


def pytest_report_header(config):
    return f"tokenprune: {'every case' if everything() else f'cases drawn by TP_SEED={SEED} (every case: --all)'}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests go to the workers one by one, but those that share something dear to one worker, before all others."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            module = Path(nodeid.partition("::")[0]).stem
            return next((what for what, modules in SHARED.items() if module in modules), nodeid)

    return Scheduler(config, log)


def pytest_collection_modifyitems(config, items):
    """Leave out what runs with `--all` alone."""
    late = [] if everything() else [item for item in items if item.get_closest_marker("nightly")]
    items[:] = [item for item in items if item not in late]
    config.hook.pytest_deselected(items=late)


@pytest.fixture(autouse=True)
def holds_what_it_says(request, monkeypatch):
    """A test that the ledger counts for a method (`eval/faithfulness.py`) runs that method."""
    named = held().get(f"tests/{request.node.path.name}::{getattr(request.node, 'originalname', '')}", ())
    given = getattr(getattr(request.node, "callspec", None), "params", {}).values()
    named = {name for name in given if isinstance(name, str)} & {*named} or {*named}
    ran: set[str] = set()

    def noting(name, select):
        return lambda self, view: (ran.add(name), select(self, view))[1]

    for name in named:
        for cls in (method_class(name), *method_class(name).stages.values()):
            monkeypatch.setattr(cls, "select", noting(name, cls.select))
    yield
    assert ran == named, f"the ledger says that this test holds {named}, but of these it ran {ran or 'none'}"


@functools.cache
def held():
    return {holding.test: holding.methods for holding in holdings()}


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
            for part in (Picture(4, 6), *[Video(2, 3, 2)] * family.has_video):
                with torch.no_grad():  # transformers puts hooks of its own on in the first forward
                    built[key](**family.inputs([[3, part, 5]]))
        return built[key]

    return get


@pytest.fixture
def plain_flex(monkeypatch):
    """Flex attention uncompiled: a shape takes half a minute, and a mask, which `--all` compiles, ten seconds."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from transformers import masking_utils
    from transformers.integrations import flex_attention as flex

    def attend(query, key, value, training=False, **kwargs):
        return flex_attention(query, key, value, **kwargs)

    monkeypatch.setattr(flex, "compile_friendly_flex_attention", attend)
    if not everything():
        monkeypatch.setattr(masking_utils, "create_block_mask", lambda *a, _compile, **k: create_block_mask(*a, **k))


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""
    from tokenprune import cli

    monkeypatch.delenv("COLUMNS", raising=False)  # pytest-xdist sets it

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
