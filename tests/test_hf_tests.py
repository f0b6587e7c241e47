"""`make hf-tests` itself, on a test class made up here: what it prunes, excuses and reports."""

from __future__ import annotations

import contextlib
import io

import pytest
from pydantic import ValidationError

from eval.hf_tests.plugin import MODES, Plugin
from eval.hf_tests.verdict import Expected, Listed, Outcome, judge

REFUSAL = "Pass input_ids, not inputs_embeds"
MADE_UP = """
import unittest

import torch

from tests.tiny import FAMILIES, Picture

TINY = FAMILIES["llava"]


class Tester:
    seq_length = 5

    def get_config(self):
        return TINY.config()

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        ids = torch.full((2, self.seq_length), config.image_token_id)
        ids[1, 3:] = 20
        return config, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.zeros(2, 3)}


class ModelTesterMixin:
    def _prepare_for_class(self, inputs, model_class, return_labels=False):
        return inputs | {"labels": torch.zeros_like(inputs["input_ids"])}

    def _check_attentions_for_generate(self, maps):
        self.assertEqual({m.shape[-1] for m in maps}, {maps[0].shape[-1]})


class LlavaModelTest(ModelTesterMixin, unittest.TestCase):
    def setUp(self):
        self.model = TINY.model_class._from_config(TINY.config(), attn_implementation="eager").eval()
        self.inputs = TINY.inputs([[3, Picture(4, 6), 5]])
        self.model_tester = Tester()

    @torch.no_grad()
    def test_shapes(self):
        self._check_attentions_for_generate(self.model(**self.inputs, output_attentions=True).attentions)

    @torch.no_grad()
    def test_refused(self):
        ids = self.inputs.pop("input_ids")
        embeds = self.model.get_input_embeddings()(ids)
        with self.subTest("the picture is in them"):
            self.model(inputs_embeds=embeds, **self.inputs)

    @torch.no_grad()
    def test_planted(self):
        self.model(**self.inputs)
        self.assertEqual(bool(self.model.model.language_model._forward_pre_hooks), False, "planted")

    def test_inputs(self):
        for _ in range(2):
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            self.assertEqual(inputs["input_ids"][:, 5:].tolist(), [[7, 8, 9]] * 2)
            self.assertEqual(self.model_tester.seq_length, 8)
        self.assertTrue(inputs["attention_mask"].all())
        self.assertEqual(inputs["pixel_values"].shape, (2, 3))
        labels = self._prepare_for_class(inputs, TINY.model_class, return_labels=True)["labels"]
        self.assertEqual((labels == -100).sum(1).tolist(), [6, 4])

    def test_fails_unpruned(self):
        self.fail("always")

    def test_not_wanted(self):
        self.fail("never runs")


class LlavaIntegrationTest(unittest.TestCase):
    def test_weights(self):
        self.fail("never runs")
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Outcomes of the made-up tests in every mode."""
    file = tmp_path_factory.mktemp("made_up") / "llava" / "test_modeling_llava.py"
    file.parent.mkdir()
    file.write_text(MADE_UP)
    plugin = Plugin(["llava"], list(MODES), Listed(short=("test_(shapes|refused|planted|inputs|fails_unpruned)",)))
    options = ["-q", "-c", str(file.with_name("none.ini")), "--rootdir", str(file.parent), "-p", "no:cacheprovider"]
    file.with_name("none.ini").write_text("[pytest]\n")
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main([*options, str(file)], plugins=[plugin])
    return plugin.results


def expected(**changes):
    given = {"tests": ("test_refused",), "modes": "abcd", "error": REFUSAL, "reason": "a reason"}
    return Expected(**given | changes)


PLANTED = expected(tests=("test_plan.*",), error="AssertionError.*planted", by_design=True, reason="planted")


def test_models_are_pruned_at_construction_and_only_the_classes_of_models_run(results):
    outcomes = {
        mode: {name.partition("::")[2]: one.outcome for name, one in tests.items()}
        for mode, tests in results["llava"].items()
    }
    assert outcomes["none"] == {
        "test_shapes": "passed",
        "test_refused": "passed",
        "test_planted": "passed",
        "test_inputs": "passed",
        "test_fails_unpruned": "failed",
    }
    for mode in "abcd":
        assert outcomes[mode] == {
            "test_shapes": "passed",
            "test_refused": "failed",
            "test_planted": "failed",
            "test_inputs": "passed",
        }, mode
    assert set(outcomes["e"].values()) == {"passed"}
    shapes = {mode: tests["LlavaModelTest::test_shapes"] for mode, tests in results["llava"].items()}
    assert [(one.stages, one.dropped > 0) for one in shapes.values()] == [
        (0, False),
        *[(1, False)] * 2,
        *[(1, True)] * 2,
        (0, False),
    ]


def test_what_is_expected_is_excused_with_its_message_alone(results):
    found = judge(results, Listed(expected=(expected(), PLANTED)))
    assert found.good
    assert found.excused == {"a reason": [f"llava {m}" for m in "abcd"], "planted": [f"llava {m}" for m in "abcd"]}
    assert found.rows[0] == {
        **{"family": "llava", "mode": "none", "passed": 4, "refused": 0, "failed": 1, "skipped": 0},
        **{"stages": 0, "dropped": 0},
    }
    assert found.rows[3] == {
        **{"family": "llava", "mode": "c", "passed": 2, "refused": 1, "failed": 0, "skipped": 1},
        **{"stages": 2, "dropped": 2},
    }
    assert found.baseline == {"test_fails_unpruned: builtins.AssertionError: always": ["llava none"]}


def test_another_failure_of_an_expected_test_is_reported(results):
    found = judge(results, Listed(expected=(expected(error="another message"), PLANTED)))
    assert not found.good
    ((text, where),) = found.unexpected.items()
    assert text.startswith("test_refused: tokenprune.errors.Unsupported: ")
    assert where == [f"llava {mode}" for mode in "abcd"]
    assert found.stale == {"test_refused: another message": where}


def test_a_planted_failure_is_reported(results):
    found = judge(results, Listed(expected=(expected(),)))
    ((text, where),) = found.unexpected.items()
    assert text.startswith("test_planted: builtins.AssertionError: ")
    assert where == [f"llava {mode}" for mode in "abcd"]
    assert list(found.lines()) == [f"Not expected: {text}\n    in llava a, llava b, llava c, llava d"]


@pytest.mark.parametrize(
    ("changes", "complete", "stale"),
    [
        ({"modes": "abcde"}, True, {"test_refused": ["llava e"]}),
        ({"modes": "abcde", "families": ("llava",)}, False, {"test_refused": ["llava e"]}),
        ({"modes": "abcde"}, False, {}),  # another family may need it
        ({"tests": ("test_refused", "test_shapes")}, True, {"test_shapes": [f"llava {mode}" for mode in "abcd"]}),
        ({"tests": ("test_refused", "test_not_run")}, True, {}),
    ],
)
def test_what_is_expected_in_vain_is_reported(results, changes, complete, stale):
    found = judge(results, Listed(expected=(expected(**changes), PLANTED)), complete)
    assert found.stale == {f"{test}: {REFUSAL}": where for test, where in stale.items()}
    assert not found.unexpected


def test_a_family_whose_tests_prune_nothing_is_reported():
    results = {"llava": {"a": {"T::test_x": Outcome("passed")}, "b": {"T::test_x": Outcome("passed", stages=1)}}}
    assert judge(results, Listed()).unpruned == ["llava a"]


def test_every_subtest_has_to_be_expected():
    mixed = Outcome("failed", [f"Unsupported: {REFUSAL}", "RuntimeError: sizes"], stages=1)
    found = judge({"llava": {"a": {"T::test_refused": mixed}}}, Listed(expected=(expected(modes="a"),)))
    assert found.unexpected == {"test_refused: RuntimeError: sizes": ["llava a"]}


def test_the_committed_list_is_well_formed():
    assert Listed.load().short
    with pytest.raises(ValidationError):
        expected(modes="none")
