"""What became of each token, and why, checked against the selection itself; the page in a browser."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from tests.browser import browser, complaints, needs_browser, shot
from tests.draw import cases
from tokenprune import FastV, Plan, Stage, load_video, prune, scenes
from tokenprune.chat import Chat
from tokenprune.explain.answers import explain
from tokenprune.explain.overlay import heat_map
from tokenprune.explain.page import page
from tokenprune.explain.stages import GONE
from tokenprune.methods.base import signals_of
from tokenprune.methods.registry import all_methods, method_class
from tokenprune.signals.table import SIGNALS

IMAGE = Image.open(scenes.IMAGE).convert("RGB")
GIVEN = {name for name, signal in SIGNALS.items() if signal.given}  # by the user alone


@pytest.fixture(scope="module")
def chat():
    return Chat.load("scenes")


def ask(chat, method, **options):
    return explain(chat, IMAGE, scenes.QUESTION, Plan.of(method, **options), 4)


def test_scores_ranks_and_neighbours(chat):
    """FastV's score is the row that it reads; the kept tokens are its first ranks."""
    seen = []

    class Watched(FastV):
        def select(self, view):
            seen.append(view["attention_row"].float().mean(-2)[0].numpy())
            return super().select(view)

    found = ask(chat, [Stage(4, Watched(keep=0.25))])
    (view,) = found.stages
    assert np.allclose(view.scores.ravel(), seen[0])
    assert view.kept.sum() == 36
    assert set(view.ranks[view.kept]) == set(range(1, 37))
    places = np.arange(144).reshape(view.kept.shape)
    assert (view.nearest[view.kept] == places[view.kept]).all()
    assert view.kept.ravel()[view.nearest[~view.kept]].all()
    assert (view.likeness[~view.kept] <= 1).all()
    assert (view.merged == GONE).all()


def test_greedy_methods_have_an_order(chat):
    (view,) = ask(chat, "divprune", keep=20).stages
    assert sorted(view.ranks[view.kept]) == list(range(1, 21))
    assert (view.ranks[~view.kept] == GONE).all()
    assert not view.scored


def test_merged_tokens_name_the_one_they_went_into(chat):
    found = ask(chat, "visionzip", keep=0.25)
    (view,) = found.stages
    folded = (view.merged != GONE) & ~view.kept
    assert folded.sum() > 50
    assert view.kept.ravel()[view.merged[folded]].all()


def test_stages_follow_each_other(chat):
    found = ask(chat, "pyramiddrop", keep=0.5)
    assert len(found.stages) == 3
    for before, after in zip(found.stages, found.stages[1:], strict=False):
        assert (after.present == before.kept).all()
        assert np.isnan(after.scores[~after.present]).all()
        assert np.isfinite(after.scores[after.present]).all()


def test_tracing_changes_nothing_and_ends_with_the_run(chat):
    inputs = chat.inputs(IMAGE, scenes.QUESTION)
    with prune(chat.model, "divprune", keep=0.25) as run:
        chat.answer(inputs, 2)
        plain = run.kept[0][0]
        rankings = run.trace()
        chat.answer(inputs, 2)
        assert (run.kept[0][0] == plain).all()
        assert len(rankings) == 1
        assert (rankings[0].columns[rankings[0].kept] == plain).all()


@cases("method", [name for name, cls in all_methods().items() if not GIVEN & {*signals_of(cls)}], lambda _: None)
def test_every_method_is_explained(chat, method):
    options = {"keep": 0.5} | (
        {"at": "vision:2"} if method == "illava" else {}
    )  # its own blocks are of a deeper encoder
    found = ask(chat, method, **options)
    text = page(found, "scenes", Plan.of(method, **options))
    assert len(found.stages) == text.count('class="stage"')
    back = [(view.kept & ~view.present).any() for view in found.stages]
    assert any(back) == any(stage.recalls for _, stage in method_class(method)().schedule(8))


def test_a_video_is_explained_step_by_step():
    found = explain(
        Chat.load("scenes-video"), load_video(scenes.VIDEO), "what appears first ?", Plan.of("fastvid", keep=0.25)
    )
    assert found.span.grid == (16, 4, 4)
    assert len(found.pictures) == 16
    assert found.stages[0].kept.sum() == 64
    assert found.pruned == "purple ring"


def test_heat_maps_colour_what_is_known():
    picture = Image.new("RGB", (40, 20), "white")
    found = np.asarray(heat_map(picture, np.array([[0.0, 1.0], [np.nan, 0.5]]), 20))
    low, high, unknown = found[2, 2].astype(int), found[2, 35].astype(int), found[15, 2].astype(int)
    assert high.sum() > low.sum()
    assert len(set(unknown)) == 1


@needs_browser
def test_the_page_in_a_browser(command, tmp_path):
    code, out, err = command("explain", "--method", "visionzip", "--keep", "0.25", "--out", tmp_path / "page.html")
    assert code == 0, err
    assert "unpruned: x10 y4" in out
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"(src|href)=.(?!data:)", text.partition("<script>")[0])
    with browser(tmp_path / "profile") as driver:
        driver.get((tmp_path / "page.html").as_uri())
        assert len(driver.find_elements(By.CSS_SELECTOR, "rect")) == 144
        assert len(driver.find_elements(By.CSS_SELECTOR, "rect.kept")) == 36
        ActionChains(driver).move_to_element(driver.find_elements(By.CSS_SELECTOR, "rect.gone")[30]).perform()
        why = driver.find_element(By.ID, "why0").text
        assert re.search(
            r"row \d+, column \d+: goes · score [\d.e-]+ · rank \d+ · folded into row \d+, column \d+", why
        )
        assert len(driver.find_elements(By.CSS_SELECTOR, "rect.target")) == 1
        driver.find_element(By.CSS_SELECTOR, "input[type=checkbox]").click()
        assert "hsl" in text
        assert driver.find_element(By.CSS_SELECTOR, "rect").get_attribute("style")
        shot(driver, "explain")
        assert complaints(driver) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image", "a.png", "--video", "b.mp4"), "--image or --video, not both"),
        (("--image", "a.png"), "--image needs --prompt"),
        (("--frames", "3"), "--frames goes with --video"),
        (("--method", "divprun"), "Did you mean 'divprune'"),
        (("--image", "nowhere.png", "--prompt", "what ?"), "no image at nowhere.png"),
        (("--keep", "0.5", "--out", "/proc/page.html"), "Cannot write"),
    ],
)
def test_wrong_input(command, arguments, message):
    code, _, err = command("explain", *arguments)
    assert code == 2
    assert message in " ".join(err.split())
