"""The demo: its controls as plans, its session, and the page in a real browser."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
import zlib
from itertools import pairwise
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import av
import gradio as gr
import pytest
import skimage
from gradio_client import Client, handle_file
from PIL import Image
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import tokenprune
from eval.media import clips
from tests.browser import browser, complaints, needs_browser, shot
from tests.draw import cases
from tests.tiny.saved import save
from tokenprune import BadInput, Stage, TokenpruneError, scenes
from tokenprune.chat import Chat
from tokenprune.demo.app import AUTOMATIC, tell
from tokenprune.demo.controls import PUBLISHED, plan
from tokenprune.demo.session import EXAMPLES, Session
from tokenprune.media.clip import Clip
from tokenprune.media.readers import READERS
from tokenprune.methods.registry import all_methods
from tokenprune.recipes import recipe_names

CLIPS = Path(skimage.__file__).parent / "data"


def controls(method="divprune", keep=0.25, at=PUBLISHED, positions="original", extra="", second="none", then=(0.5, 4)):
    return method, keep, at, positions, extra, second, *then


@pytest.fixture(scope="module")
def session():
    return Session(max_new_tokens=20)


def last(steps):
    return list(steps)[-1]


# Plans.


@pytest.mark.parametrize(
    "asked",
    [
        controls(),
        controls("fastv", 0.5, "4", "compact"),
        controls("fopru", extra="strategy=row"),
        controls("vispruner_64"),
        controls("divprune", 0.5, "0", second="fastv", then=(0.3, 4.0)),
        controls("fopru", 0.5, "0", extra="strategy=row; rounding=up", second="random"),
    ],
)
def test_the_python_line_does_what_is_on_the_screen(session, asked):
    """The line that can be copied keeps the same tokens and gives the same answer."""
    shown = last(session.ask(scenes.IMAGE, scenes.QUESTION, plan(*asked)))
    chat = Chat.load("scenes")
    names = {"model": chat.model, "tokenprune": tokenprune, "Stage": Stage}
    names |= {cls.__name__: cls for cls in all_methods().values()}
    exec(plan(*asked).python(), names)
    with names["run"] as run:
        text, _ = chat.answer(chat.inputs(session.open(scenes.IMAGE), scenes.QUESTION), 20)
    assert text == shown.pruned
    assert shown.rows[1][2] == str(run.report().final_tokens)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (controls("divprun"), "Did you mean 'divprune'"),
        (controls(extra="kep=3"), "Did you mean 'keep'"),
        (controls(extra="strategy"), "write name=value|Write name=value"),
        (controls("sparsevlm_64", second="fastv"), "own stages"),
        (controls("sparsevlm_64", at="3"), "own stages"),
        (controls(second="fastv"), "choose its layer"),
    ],
)
def test_plans_that_cannot_be(asked, message):
    with pytest.raises(BadInput, match=message):
        plan(*asked)


# The session.


def test_answers_grow_and_then_everything_is_there(session):
    steps = [
        (s.dense, s.pruned, len(s.stages)) for s in session.ask(scenes.IMAGE, "describe the image .", plan(*controls()))
    ]
    assert len({dense for dense, _, _ in steps}) > 5
    assert steps[-1][0] == steps[-1][1]
    assert steps[-1][2] == 1


@pytest.mark.parametrize(("path", "question"), EXAMPLES)
def test_the_examples_answer_right(session, path, question):
    """What is in the bundled picture and clip, by the generators that drew them."""
    right = {
        "where is the red circle ?": ("x10 y4",),
        "what shape is yellow ?": ("square",),
        "describe the image .": ("green cross , purple square , cyan 4 , yellow square , red circle",),
        "what appears first ?": ("purple ring",),
        'price of "qaxuc" ?': ("81.74",),
        "which box is ticked ?": ("kdhdfg",),
    }
    shown = last(session.ask(path, question, plan(*controls(keep=0.5))))
    assert (shown.dense,) == (shown.pruned,) == right[question]


@cases("method", [*all_methods(), *recipe_names()[::6]], lambda _: None)
def test_every_choice_of_the_menu_answers_or_says_why(session, method):
    refused = []
    try:
        shown = last(session.ask(scenes.IMAGE, scenes.QUESTION, plan(*controls(method, 0.5))))
    except TokenpruneError as error:
        refused.append((method, str(error)))
    else:
        assert shown.rows[0][1] == "144.0"
    for _, why in refused:
        assert re.search(r"past the last layer|keep=\d+ is more than|run\.give|frame_scores|voxels|geometry", why), why


def test_another_model(tmp_path):
    save("llava_next", tmp_path)
    shown = last(Session(str(tmp_path), max_new_tokens=2).ask(CLIPS / "astronaut.png", "what ?", plan(*controls())))
    assert shown.rows[1][1:3] == ["180", "45"]
    with pytest.raises(BadInput, match="takes no videos"):
        last(Session(str(tmp_path)).ask(scenes.VIDEO, "what ?", plan(*controls())))


def test_files_that_cannot_be_opened(session, tmp_path):
    (tmp_path / "secret").mkdir()
    for name, content, message in [
        ("a.png", b"no picture", "a.png is neither a picture nor a video"),
        ("a.mp4", b"\0\0\0\x18ftypisom", "a.mp4 is not a video"),
        ("a.txt", b"words", "a.txt is neither a picture nor a video"),
        ("wrong.png", b"\x1aE\xdf\xa3" + bytes(99), "wrong.png is not a video"),
        ("b.png", b"", "b.png is empty"),
    ]:
        path = tmp_path / "secret" / name
        path.write_bytes(content)
        with pytest.raises(BadInput, match=message) as error:
            session.open(path)
        assert "secret" not in str(error.value)
    with pytest.raises(BadInput, match="Upload an image"):
        session.open(None)


@pytest.mark.parametrize("name", ["clip", "clip.png", "clip.ts", "clip.txt"])
def test_the_content_tells_what_a_file_is(session, tmp_path, name):
    """A clip and a picture under every kind of name."""
    for source, size in ((scenes.VIDEO, 32), (scenes.IMAGE, None)):
        path = tmp_path / name
        path.write_bytes(source.read_bytes())
        opened = session.open(path)
        assert (len(opened.frames) if isinstance(opened, Clip) else None) == size


def test_the_reader_can_be_chosen_and_is_said(session, tmp_path):
    """Whatever the menu offers reads the bundled clip; what a reader does not read right, it refuses."""
    for reader in (None, *READERS):
        by = f"read by {reader or 'av'}"
        assert session.preview(scenes.VIDEO, reader)[1] == f"32 of 32 frames, 0.00 to 3.88 s, {by}"
        steps = session.ask(scenes.VIDEO, scenes.VIDEO_QUESTION, plan(*controls(keep=0.5)), reader)
        shown = last(steps)
        assert (shown.pruned, by in shown.opened) == ("purple ring", True)
    assert session.preview(scenes.IMAGE, "decord")[1] == "a picture of 96 x 96 pixels"
    turned = clips.write(tmp_path / "turned.mp4", "libx264", turn="mirrored")
    with pytest.raises(BadInput, match=r"^decord does not read turned\.mp4 right"):
        session.preview(turned, "decord")


def test_questions_that_cannot_be_asked(session):
    with pytest.raises(BadInput, match=r"takes 1147 positions \(1003 tokens of text and 144 visual ones\), but"):
        last(session.ask(scenes.IMAGE, "a " * 1000, plan(*controls())))
    with pytest.raises(BadInput, match="prompt is empty"):
        last(session.ask(scenes.IMAGE, "  ", plan(*controls())))
    with pytest.raises(BadInput, match="at most 2000"):
        last(session.ask(scenes.IMAGE, "x" * 3000, plan(*controls())))


def test_a_question_that_is_given_up_lets_the_next_one_in(session):
    first = session.ask(scenes.IMAGE, "describe the image .", plan(*controls()))
    next(first)
    first.close()
    assert last(session.ask(scenes.IMAGE, scenes.QUESTION, plan(*controls()))).pruned == "x10 y4"


# The page.


@pytest.fixture(scope="module")
def served():
    """The demo as a user starts it: its address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = [sys.executable, "-m", "tokenprune.cli", "demo", "--port", str(port), "--max-new-tokens", "20"]
    started = subprocess.Popen(
        program, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urlopen(url, timeout=5)
            break
        except OSError:
            assert started.poll() is None, started.stdout.read()
            time.sleep(0.5)
    yield url, started.pid
    started.terminate()
    started.wait(timeout=20)


@pytest.fixture
def address(served):
    return served[0]


class Page:
    """What a visitor does."""

    def __init__(self, driver, url):
        self.driver = driver
        driver.get(url)
        self.wait(lambda: driver.find_elements(By.ID, "ask"))
        self.wait(lambda: "tokenprune.prune" in self.find("#line").text)

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def wait(self, what, seconds=40):
        ignored = (StaleElementReferenceException,)
        return WebDriverWait(self.driver, seconds, ignored_exceptions=ignored).until(lambda _: what())

    def value(self, name):
        return self.find(f"#{name} textarea").get_attribute("value")

    def upload(self, path):
        for button in self.driver.find_elements(By.CSS_SELECTOR, "#file button[aria-label=Clear]"):
            button.click()
        self.wait(lambda: self.driver.find_elements(By.CSS_SELECTOR, "#file input[type=file]"))
        self.find("#file input[type=file]").send_keys(str(path))
        self.wait(lambda: Path(path).stem in self.find("#file").text)

    def type(self, selector, text):
        field = self.find(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)

    def choose(self, name, option):
        self.type(f"#{name} input", option)
        self.wait(lambda: self.driver.find_elements(By.CSS_SELECTOR, "ul[role=listbox] li"))
        self.find(f"#{name} input").send_keys(Keys.ENTER)

    def ask(self):
        self.find("#ask").click()

    def message(self):
        text = self.wait(
            lambda: self.driver.find_elements(By.CSS_SELECTOR, ".toast-body") and self.find(".toast-body").text
        )
        self.find(".toast-body button").click()
        self.wait(lambda: not self.driver.find_elements(By.CSS_SELECTOR, ".toast-body"))
        return text


@needs_browser
def test_a_visit(address, tmp_path):
    """Load, upload, ask, move the slider, switch the method, a clip, a wrong file."""
    with browser(tmp_path / "profile", height=1300) as driver:
        page = Page(driver, address)
        page.upload(scenes.IMAGE)
        page.type("#question textarea", scenes.QUESTION)
        page.ask()
        page.wait(lambda: page.value("pruned") == "x10 y4")
        assert page.value("dense") == "x10 y4"
        page.wait(lambda: "36 of 144 tokens" in page.find("#stages").text)
        assert "order of picking" in page.find("#scores").text
        assert "KV cache, KiB" in page.find("#figures").text
        shot(driver, "demo_image")

        page.find("#keep input[type=range]").send_keys(Keys.ARROW_RIGHT * 5)
        page.wait(lambda: "keep=0.3)" in page.find("#line").text)
        page.ask()
        page.wait(lambda: "43 of 144 tokens" in page.find("#stages").text)
        page.type("#keep input[type=number]", "0.5\t")
        page.wait(lambda: "keep=0.5" in page.find("#line").text)

        page.choose("method", "pyramiddrop")
        page.wait(lambda: "2410.17247" in page.find("#about").text)
        page.wait(lambda: "'pyramiddrop'" in page.find("#line").text)
        page.ask()
        page.wait(lambda: "pyramiddrop, before layer 6" in page.find("#stages").text)
        assert len(driver.find_elements(By.CSS_SELECTOR, "#stages img")) >= 3
        shot(driver, "demo_stages")

        page.choose("method", "fastvid")
        page.upload(scenes.VIDEO)
        page.type("#question textarea", scenes.VIDEO_QUESTION)
        page.ask()
        page.wait(lambda: page.value("pruned") == "purple ring")
        page.wait(lambda: "128 of 256 tokens" in page.find("#stages").text)
        page.wait(lambda: "32 of 32 frames, 0.00 to 3.88 s, read by av" in page.find("#opened").text)
        shot(driver, "demo_video")

        wrong = tmp_path / "wrong.png"
        wrong.write_text("no picture")
        page.upload(wrong)
        assert "wrong.png is neither a picture nor a video that can be read" in page.message()
        page.ask()
        assert "wrong.png is neither a picture nor a video that can be read" in page.message()
        page.upload(scenes.IMAGE)
        page.type("#question textarea", Keys.DELETE)
        page.ask()
        assert "The prompt is empty" in page.message()
        shot(driver, "demo_wrong")
        outside = [text for text in complaints(driver) if "127.0.0.1" not in text]
        assert [text for text in outside if "ERR_" not in text] == []


TOGETHER = ("dense", "pruned", "seen", "stages", "scores", "figures")
PLACES = """return Object.fromEntries(arguments[0].map(id => {
    const box = document.getElementById(id).getBoundingClientRect();
    return [id, [box.left, box.top, box.right, box.bottom]];
}))"""


def sized(driver, width, height):
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 800)
    )
    time.sleep(0.5)


def places(driver, width, height):
    """Where things stand, none of them beyond the edges of the page."""
    found = driver.execute_script(PLACES, TOGETHER)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert all(0 <= left < right <= width and top < bottom for left, top, right, bottom in found.values()), found
    assert height == driver.execute_script("return innerHeight")
    return found


@needs_browser
@pytest.mark.parametrize(
    ("media", "question", "method", "file"),
    [
        ("image", "describe the image .", "divprune", scenes.IMAGE),
        ("stages", "describe the image .", "pyramiddrop", scenes.IMAGE),
        ("video", scenes.VIDEO_QUESTION, "fastvid", scenes.VIDEO),
    ],
)
def test_everything_is_in_view_after_asking(address, tmp_path, media, question, method, file):
    """Both answers, all pictures and the figures, without scrolling, on a small laptop (also below a browser's bars)
    and on a large screen; on a phone under each other."""
    with browser(tmp_path / "profile") as driver:
        sized(driver, 1366, 768)
        page = Page(driver, address)
        page.upload(file)
        page.type("#question textarea", question)
        page.choose("method", method)
        page.ask()
        page.wait(lambda: "KV cache, KiB" in page.find("#figures").text)
        page.wait(lambda: len(driver.find_elements(By.CSS_SELECTOR, "#stages .media-button img")) == 1)
        for name in ("dense", "pruned"):
            driver.execute_script(f"document.querySelector('#{name} textarea').value = 'word '.repeat(300)")
        for width, height in ((1366, 768), (1366, 640), (1920, 1080)):
            sized(driver, width, height)
            found = places(driver, width, height)
            assert driver.execute_script("return scrollY") == 0
            assert all(top >= 0 and bottom <= height for _, top, _, bottom in found.values()), (width, height, found)
            shot(driver, f"demo_{media}_{width}x{height}")
        sized(driver, 390, 844)
        found = places(driver, 390, 844)
        stacked = [found[name] for name in TOGETHER]
        assert all(above[3] <= below[1] + 1 for above, below in pairwise(stacked)), stacked
        shot(driver, f"demo_{media}_390x844")


@needs_browser
def test_an_example_by_a_click(address, tmp_path):
    with browser(tmp_path / "profile", height=1600) as driver:
        page = Page(driver, address)
        row = page.wait(lambda: driver.find_element(By.XPATH, "//table//div[contains(text(), 'describe the image')]"))
        row.click()
        page.wait(lambda: page.value("question") == "describe the image .")
        page.wait(lambda: "scene" in page.find("#file").text)
        page.ask()
        page.wait(lambda: page.value("pruned").endswith("red circle"))


def status(url, data=None, **headers):
    try:
        return urlopen(Request(url, data=data, headers=headers), timeout=30).status
    except HTTPError as error:
        return error.code


def test_no_file_of_the_server_is_readable(address):
    folder = Path(tokenprune.__file__).parent
    for path in ("/etc/passwd", "/proc/self/environ", folder / "api.py", "README.md", "../../etc/passwd", scenes.IMAGE):
        for route in ("gradio_api/file=", "file=", "assets/", "static/"):
            assert status(f"{address}/{route}{path}") in (400, 403, 404), path
    for path in ("/etc/passwd", str(folder / "scenes" / "clip.mp4")):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        data = json.dumps({"data": [file, scenes.QUESTION, *controls(), AUTOMATIC]}).encode()
        call = f"{address}/gradio_api/call/ask"
        with urlopen(Request(call, data, {"Content-Type": "application/json"}), timeout=30) as answer:
            event = json.load(answer)["event_id"]
        with urlopen(f"{call}/{event}", timeout=30) as answer:
            assert answer.read().decode().split() == ["event:", "error", "data:", '{"error":', "null}"]


def test_the_app_as_an_interface(address):
    """The same from a program; an unknown method is refused by its menu."""
    client = Client(address, verbose=False)
    found = client.predict(handle_file(scenes.IMAGE), scenes.QUESTION, *controls(), api_name="/ask")
    assert found[:2] == ("x10 y4", "x10 y4")
    asked = handle_file(scenes.VIDEO), scenes.VIDEO_QUESTION, *controls("uniform", 0.5), "decord"
    assert client.predict(*asked, api_name="/ask")[-1].endswith("read by decord")
    assert Image.open(found[2]).size == Image.open(found[3]["value"][0]["image"]).size == (480, 480)
    with pytest.raises(Exception, match="not in the list of choices"):
        client.predict(handle_file(scenes.IMAGE), scenes.QUESTION, *controls("/etc/x.yaml"), api_name="/ask")


def test_huge_files_do_not_take_the_memory(served, tmp_path):
    """A few KiB that are gigabytes when opened: the clip is asked about in little memory, the picture is refused."""
    clip, bomb, side = tmp_path / "huge.mp4", tmp_path / "bomb.png", 24_000
    with av.open(str(clip), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 4096, 4096, "yuv420p"
        grey = av.VideoFrame(4096, 4096, "yuv420p")
        for grey.pts in range(32):
            out.mux(stream.encode(grey))
        out.mux(stream.encode())
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side))
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    assert max(clip.stat().st_size, bomb.stat().st_size) < 100_000
    url, process = served
    client = Client(url, verbose=False)

    def ask(path):
        return client.predict(handle_file(path), scenes.VIDEO_QUESTION, *controls(), AUTOMATIC, api_name="/ask")

    ask(scenes.VIDEO)
    Path(f"/proc/{process}/clear_refs").write_text("5")  # the peak begins anew
    before = peak(process)
    assert ask(clip)[-1] == "32 of 32 frames, 0.00 to 3.10 s, read by av, scaled from 4096 x 4096 to 256 x 256"
    with pytest.raises(Exception, match=r"^bomb\.png is too large: over \d+ million pixels\. Scale it down first"):
        ask(bomb)
    assert ask(scenes.VIDEO)[1] == "purple ring"
    assert peak(process) - before < 500


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def peak(process):
    """The most memory that a process has held, in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024


def test_no_folder_of_the_server_is_told(address, tmp_path):
    """Neither in what describes the app nor in what goes wrong, by our refusals or by the library's."""
    texts = [urlopen(f"{address}{route}", timeout=30).read().decode() for route in ("/", "/config", "/gradio_api/info")]
    client = Client(address, verbose=False)
    heads = {
        "a.mkv": b"\x1aE\xdf\xa3",
        "b.png": b"\x89PNG\r\n\x1a\n",
        "c.avi": b"RIFF....AVI ",
        "d": b"FLV\x01",
        "e.txt": b"x",
    }
    for name, head in heads.items():
        (tmp_path / name).write_bytes(head + bytes(99) * (name != "e.txt"))
        with pytest.raises(Exception, match=f"^{name} is") as error:
            client.predict(handle_file(tmp_path / name), "what ?", *controls(), api_name="/ask")
        texts.append(str(error.value))
    for path in ("/etc/passwd", str(scenes.IMAGE), "/nowhere/a.png", "", "../a", None, 7):
        texts.append(
            refusal(address, [{"path": path, "meta": {"_type": "gradio.FileData"}}, "what ?", *controls(), AUTOMATIC])
        )
    texts += [
        refusal(address, [None, text, *controls(extra=text), AUTOMATIC]) for text in ("", "keep=/etc/x", "a=b", "[")
    ]
    folders = {str(Path(tokenprune.__file__).parent.parent), str(tmp_path), str(Path.home()), sys.prefix, os.getcwd()}
    for text in texts:
        assert not [folder for folder in {*folders, "/tmp/gradio"} if folder in text], text


def refusal(address, data):
    call = f"{address}/gradio_api/call/ask"
    request = Request(call, json.dumps({"data": data}).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as answer:
        event = json.load(answer)["event_id"]
    with urlopen(f"{call}/{event}", timeout=30) as answer:
        text = answer.read().decode()
    assert text.startswith("event: error"), text
    return text


def test_a_failure_of_ours_is_told_without_its_words(caplog):
    def broken():
        raise PermissionError(13, "Permission denied", "/home/someone/secret")

    with pytest.raises(gr.Error, match="The demo failed at this") as error:
        tell(broken)
    assert "secret" not in str(error.value)
    assert "/home/someone/secret" in caplog.text


def test_uploads_have_a_limit(address):
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    data = head + b"0" * (51 * 1024 * 1024) + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert status(f"{address}/gradio_api/upload", data, **kind) == 413


def test_only_this_machine_is_listened_to(address):
    port = int(address.rpartition(":")[2])
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if f":{port:04X}" in line]
    assert {own for own in listening if own.endswith(f":{port:04X}")} == {f"0100007F:{port:04X}"}


def test_a_port_in_use(command, address):
    code, _, err = command("demo", "--port", address.rpartition(":")[2])
    assert code == 2
    assert "Give another --port" in " ".join(err.split())
