"""The gate draws cases by a seed: a few seeds after each other meet every case, and each of them every kind."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from tests.draw import DRAWN, TURNS, drawn, values_of
from tests.laws import ANCHORS, CLASSES, PRODUCT, SAMPLE, SAMPLE_WITH_VIDEOS, WITH_VIDEOS
from tests.tiny import FAMILIES


@pytest.fixture(scope="module")
def tests_that_draw():
    """Full product and kinds of every test with `cases`."""
    for path in Path(__file__).parent.glob("test_*.py"):
        if "cases" in path.read_text():
            import_module(f"tests.{path.stem}")
    return DRAWN


def test_consecutive_seeds_meet_every_case(tests_that_draw):
    assert len(tests_that_draw) > 20
    for test, (found, by) in tests_that_draw.items():
        for first in (0, 5):
            met = {id(case) for seed in range(first, first + TURNS) for case in drawn(found, by, test, seed)}
            assert met == set(map(id, found)), test


def test_every_seed_meets_every_kind(tests_that_draw):
    for test, (found, by) in tests_that_draw.items():
        kinds = {str(by(*values_of(case))) for case in found}
        for seed in range(TURNS):
            assert {str(by(*values_of(case))) for case in drawn(found, by, test, seed)} == kinds, test


def test_the_laws_run_every_class_and_family_with_every_seed(tests_that_draw):
    """Every class on the anchors but those of the sample; nothing is in neither, nothing in both."""
    found, by = tests_that_draw["tests.test_laws.test_one_run"]
    assert {case.id for case in found} | {case.id for case in SAMPLE} == {case.id for case in PRODUCT}
    assert not {case.id for case in found} & {case.id for case in SAMPLE}
    for seed in range(TURNS):
        cases = [*SAMPLE, *drawn(found, by, "test_one_run", seed)]
        met = {(case.values[0].name, str(CLASSES[case.values[1]])) for case in cases}
        for name in ANCHORS:
            wanted = {str(CLASSES[case.values[1]]) for case in PRODUCT if case.values[0].name == name}
            missing = wanted - {kind for family, kind in met if family == name}
            assert not missing, (name, seed, missing)
    videos, _ = tests_that_draw["tests.test_laws.test_one_run_with_videos"]
    assert len(videos) + len(SAMPLE_WITH_VIDEOS) == len(WITH_VIDEOS)


def test_the_sample_has_each_family_before_inside_and_in_stages():
    for name in FAMILIES:
        assert len({case.values[1] for case in SAMPLE if case.values[0].name == name}) >= 3, name
