"""The laws of the design, for every method of the registry on every family; `test_versions.py` has their sample."""

from __future__ import annotations

import pytest

from tests.draw import cases
from tests.laws import (
    BATCHES,
    CLIPS,
    PLANS,
    POLICIES,
    PRODUCT,
    SAMPLE,
    SAMPLE_WITH_VIDEOS,
    STAGES,
    WITH_VIDEOS,
    attach,
    besides,
    by_anchor,
    by_class,
    by_family,
    cells,
    check_oracle,
    check_run,
    few_families,
    policies,
    times,
    works,
)
from tests.tiny import Picture, Video
from tokenprune import MissingSignal, supports
from tokenprune.catalogue.reach import variants
from tokenprune.engine.support import condition
from tokenprune.families.registry import family_of

pytestmark = pytest.mark.laws


@cases("family, plan, positions", besides(SAMPLE, PRODUCT), by_class)
def test_one_run(family, tiny_models, plan, positions):
    """Laws 2 to 6: every method on every family, on a padded batch of several images and a text-only row."""
    check_run(family, tiny_models(family), BATCHES["mixed"], plan, positions)


@cases("family, plan, positions", besides(SAMPLE_WITH_VIDEOS, WITH_VIDEOS), by_family)
def test_one_run_with_videos(family, tiny_models, plan, positions):
    """The same for videos."""
    check_run(family, tiny_models(family), CLIPS, plan, positions)


@pytest.mark.nightly
@pytest.mark.parametrize("batch", ["one", "text-only row"])
@cases("family, plan, positions", policies(cells([*PLANS, *STAGES], everywhere=["four stages"]), both=STAGES), by_class)
def test_oracle_on_other_batches(family, tiny_models, plan, batch, positions):
    """Laws 2, 3, 5 and 6. The gate has such rows in one batch, and each of them alone."""
    check_run(family, tiny_models(family), BATCHES[batch], plan, positions, alone=[])


@cases("family, plan, positions", times(cells(["fopru", *STAGES], video=True), POLICIES), by_anchor)
def test_oracle_with_images_beside_videos(family, tiny_models, plan, positions):
    """Law 3 for both in one prompt, a video before an image of as many tokens included."""
    if family.name.startswith("glm4"):
        pytest.skip("its own model cannot tell images from videos in one prompt")
    rows = [[3, Video(2, 3, 2), 2, Picture(3, 4), 5], [2, Picture(4, 3), 4, Video(2, 2, 4), 6], [9]]
    check_oracle(family, tiny_models(family), rows, plan, positions)


@few_families
def test_missing_signals_are_refused(family, tiny_models):
    """A family without a signal says so when pruned, not later and not by another signal."""
    for plan in PLANS:
        if not works(family, plan):
            with pytest.raises(MissingSignal, match=r"has no|no CLS|does not project"):
                attach(tiny_models(family), plan)
        else:
            attach(tiny_models(family), plan).remove()


def test_the_matrix_says_what_the_laws_hold(family, tiny_models):
    """The table of the README, cell by cell: every yes is run by the tests above (options of video methods on
    three families), every other cell is refused."""
    served = family_of(tiny_models(family))
    for name, method in variants():
        plan = name.replace(" ", "-").replace("source=", "")
        partly = condition(served, method) is not None
        if plan in PLANS:
            assert partly or (supports(served, method) is None) == works(family, plan), f"{name} on {family.name}"
