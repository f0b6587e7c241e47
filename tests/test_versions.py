"""A sample of the laws, the same with every seed: every family, and every kind of stage, prompt and cache.

`make test-versions` runs it on other versions of transformers, where optional packages may be missing.
"""

from __future__ import annotations

from itertools import product

import pytest

from tests.decoding import PLANS, check_steps
from tests.laws import BATCHES, CLIPS, POLICIES, SAMPLE, SAMPLE_WITH_VIDEOS, check_run, check_static_cache
from tests.tiny import FAMILIES

pytestmark = pytest.mark.laws


@pytest.mark.parametrize(("family", "plan", "positions"), SAMPLE)
def test_images(family, tiny_models, plan, positions):
    """Laws 2 to 6: stages before the LLM, inside and several; merging, setting aside, looking ahead, dropping all."""
    check_run(family, tiny_models(family), BATCHES["mixed"], plan, positions, alone=[1])


@pytest.mark.parametrize(("family", "plan", "positions"), SAMPLE_WITH_VIDEOS)
def test_videos(family, tiny_models, plan, positions):
    """The same for videos."""
    check_run(family, tiny_models(family), CLIPS, plan, positions, alone=[1])


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl"])
def test_decoding_stages(name, tiny_models, plan):
    """Law 3 for stages at every decoding step."""
    check_steps(FAMILIES[name], tiny_models(FAMILIES[name]), plan)


@pytest.mark.parametrize(("name", "positions"), product(["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"], POLICIES))
def test_static_cache(name, tiny_models, positions):
    """Laws 3 and 6 for a cache that is allocated beforehand."""
    check_static_cache(FAMILIES[name], tiny_models(FAMILIES[name]), positions)
