"""The server, asked by OpenAI's own client over a real connection."""

from __future__ import annotations

import base64
import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import uvicorn
from typer.testing import CliRunner

from tests.served import served
from tokenprune import BadInput, prune, scenes
from tokenprune.chat import Chat
from tokenprune.cli import app as commands
from tokenprune.media.pictures import load_image
from tokenprune.media.video import load_video
from tokenprune.plan import Plan
from tokenprune.serving import fetch as fetching
from tokenprune.serving.fetch import fetch, is_public
from tokenprune.serving.messages import Reader

QUESTIONS = (
    "where is the red circle ?",
    "what shape is yellow ?",
    "what colour is the circle ?",
    "describe the image .",
)


def data(path, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def asked(question, *paths):
    parts = [{"type": "image_url", "image_url": {"url": data(path)}} for path in paths]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


@pytest.fixture(scope="module")
def chat():
    return Chat.load("scenes")


@pytest.fixture(scope="module")
def address(chat):
    with served(chat, Plan.of("divprune", keep=0.25)) as found:
        yield found


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def complete(client, question=scenes.QUESTION, *paths, **options):
    paths = paths or (scenes.IMAGE,)
    return client.chat.completions.create(model="scenes", messages=asked(question, *paths), max_tokens=20, **options)


def alone(chat, question, keep=0.25, method="divprune"):
    inputs = chat.inputs(load_image(scenes.IMAGE), question)
    with prune(chat.model, method, keep=keep):
        return chat.answer(inputs, 20)[0]


def test_a_picture_and_what_was_left_of_it(client, chat, address):
    found = complete(client)
    assert found.choices[0].message.content == alone(chat, scenes.QUESTION)
    assert found.choices[0].finish_reason == "stop"
    told = found.usage.tokenprune
    assert told["visual_tokens"] == {"dense": 144, "kept": 36, "average": 36.0}
    assert found.usage.prompt_tokens - told["prompt_tokens_kept"] == 108
    last = httpx.get(f"{address}/tokenprune").json()
    assert last["last_report"]["final_tokens"] == 36
    assert last["plan"]["stages"][0]["method"] == "divprune"
    assert client.models.list().data[0].id == "scenes"
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    metrics = httpx.get(f"{address}/metrics").text
    assert 'tokenprune_requests_total{status="200"}' in metrics
    assert 'tokenprune_visual_tokens_total{which="kept"}' in metrics


def test_text_alone_has_nothing_to_prune(client):
    found = client.chat.completions.create(
        model="scenes", messages=[{"role": "user", "content": "what colour is the circle ?"}], max_tokens=3
    )
    assert found.choices[0].message.content is not None
    assert not hasattr(found.usage, "tokenprune")


def test_two_pictures(client):
    found = complete(client, scenes.QUESTION, scenes.IMAGE, scenes.IMAGE)
    assert found.usage.tokenprune["visual_tokens"]["dense"] == 288
    assert found.usage.tokenprune["visual_tokens"]["kept"] == 72


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_stream_says_the_same(client, question):
    whole = complete(client, question)
    parts = list(complete(client, question, stream=True))
    assert "".join(p.choices[0].delta.content or "" for p in parts).strip() == whole.choices[0].message.content.strip()
    assert parts[-1].usage.tokenprune == whole.usage.tokenprune
    assert parts[-1].choices[0].finish_reason == "stop"


def test_many_at_once_are_as_alone(client, chat):
    expected = {question: alone(chat, question) for question in QUESTIONS}
    wanted = [QUESTIONS[i % len(QUESTIONS)] for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda q: complete(client, q).choices[0].message.content, wanted))
    assert found == [expected[question] for question in wanted]


def test_a_client_that_leaves_does_not_stop_the_next(client, chat):
    for _ in range(3):
        stream = complete(client, "describe the image .", stream=True)
        next(iter(stream))
        stream.close()
    assert complete(client).choices[0].message.content == alone(chat, scenes.QUESTION)


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({"model": "gpt-5"}, 404, "There is no model 'gpt-5' here, but 'scenes'"),
        ({"messages": []}, 400, "messages is empty"),
        ({"messages": "hello"}, 400, "messages"),
        ({"messages": [{"role": "user"}]}, 400, r"messages[0].content"),
        ({"messages": [{"role": "robot", "content": "a"}]}, 400, "needs a role"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": 9}, 400, "temperature"),
        ({"n": 3}, 400, "n:"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not served"),
        ({"nonsense": 1}, 422, "nonsense"),
        ({"tokenprune": {"method": "fastv", "keep": 0.1}}, 400, "--per-request"),
    ],
)
def test_what_is_wrong_with_a_body(address, changed, status, words):
    body = {"model": "scenes", "messages": asked(scenes.QUESTION, scenes.IMAGE)} | changed
    found = httpx.post(f"{address}/v1/chat/completions", json=body)
    assert found.status_code == status, found.text
    assert words in found.json()["error"]["message"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png;base64,@@@", "no data: URI in base64|broken"),
        ("data:image/png,plain", "no data: URI in base64"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64," + base64.b64encode(b"no picture").decode(), "the file"),
        ("https://example.com/a.png", "--fetch"),
        ("file:///etc/passwd", "data:image/png"),
        ("/etc/passwd", "data:image/png"),
        (7, "needs an address"),
    ],
)
def test_what_is_wrong_with_a_picture(address, url, words):
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {"model": "scenes", "messages": [{"role": "user", "content": [part]}]}
    found = httpx.post(f"{address}/v1/chat/completions", json=body)
    assert found.status_code == 400, found.text
    told = found.json()["error"]["message"]
    assert "messages[0].content[0].image_url" in told
    assert any(word in told for word in words.split("|")), told
    assert "/tmp" not in told


def test_bodies_that_are_no_json_or_too_large(address):
    found = httpx.post(f"{address}/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    assert found.status_code == 400
    large = b" " * (50 * 2**20)
    found = httpx.post(f"{address}/v1/chat/completions", content=large, headers={"content-type": "application/json"})
    assert found.status_code == 413
    assert "1,048,576 bytes" in found.json()["error"]["message"]

    def pieces():  # without a length in the headers
        for _ in range(40):
            yield b" " * 2**16

    assert httpx.post(f"{address}/v1/chat/completions", content=pieces()).status_code == 413


def test_a_request_may_choose_within_the_budget(chat):
    with served(chat, Plan.of("divprune", keep=0.25), per_request=True) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)

        def ask(**plan):
            return complete(client, extra_body={"tokenprune": plan})

        found = ask(method="fastv", keep=0.1, at=3)
        assert found.usage.tokenprune["visual_tokens"]["kept"] == 14
        assert complete(client).usage.tokenprune["visual_tokens"]["kept"] == 36  # nothing stays behind
        for plan, words in (
            ({"method": "fastv", "keep": 0.5}, "above this server's budget"),
            ({"method": "fastv"}, "must be a number"),
            ({"method": "fastv", "keep": 36}, "must be a number"),
            ({"method": "nothing", "keep": 0.1}, "Unknown method"),
            ({"method": "/etc/plan.yaml", "keep": 0.1}, "Unknown method"),
            ({"method": "fastv", "keep": 0.1, "at": 99}, "99"),
            ({"method": "fastv", "keep": 0.1, "colour": "red"}, "colour"),
        ):
            with pytest.raises(openai.BadRequestError, match=words):
                ask(**plan)


def test_a_failure_of_the_server_is_told_and_does_not_stop_it(chat, address, client, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(Chat, "batch", lambda *_: 1 / 0)
        with pytest.raises(openai.InternalServerError, match="ZeroDivisionError; its log has more"):
            complete(client)
    assert 'tokenprune_requests_total{status="500"} 1.0' in httpx.get(f"{address}/metrics").text
    assert complete(client).choices[0].message.content == alone(chat, scenes.QUESTION)


def test_unpruned_is_the_baseline(chat):
    with served(chat, Plan()) as address:
        found = httpx.post(
            f"{address}/v1/chat/completions", json={"messages": asked(scenes.QUESTION, scenes.IMAGE)}
        ).json()
        inputs = chat.inputs(load_image(scenes.IMAGE), scenes.QUESTION)
        assert found["choices"][0]["message"]["content"] == chat.answer(inputs, 20)[0]
        assert "tokenprune" not in found["usage"]


def test_a_clip_and_pages():
    """Models of Qwen's types, whose answers transformers would read as ChatML."""
    video = Chat.load("scenes-video")
    part = {"type": "video_url", "video_url": {"url": data(scenes.VIDEO, "video/mp4")}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": scenes.VIDEO_QUESTION}]}]
    with served(video, Plan.of("fastvid", keep=0.5), "scenes-video") as address:
        for stream in (False, True):
            client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
            found = client.chat.completions.create(model="scenes-video", messages=messages, max_tokens=4, stream=stream)
            said = (
                "".join(part.choices[0].delta.content or "" for part in found)
                if stream
                else found.choices[0].message.content
            )
            assert said.strip() == "purple ring"
    clip = load_video(scenes.VIDEO, 32)
    with prune(video.model, "fastvid", keep=0.5):
        assert video.answer(video.inputs(clip, scenes.VIDEO_QUESTION), 4)[0] == "purple ring"
    with served(Chat.load("pages"), Plan.of("pixelprune"), "pages") as address:
        body = {"messages": asked(scenes.PAGES_QUESTIONS[0], scenes.PAGES[0])}
        found = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).json()
        assert found["choices"][0]["message"]["content"] == "81.74"


@pytest.mark.nightly
def test_memory_stays_flat(client):
    for _ in range(50):
        complete(client)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(500):
        complete(client)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 2**10  # KiB


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        *((one, False) for one in ("127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1")),
        *((one, False) for one in ("::1", "fe80::1%eth0", "::ffff:127.0.0.1", "fc00::1", "224.0.0.1", "2002:7f00:1::")),
    ],
)
def test_public_addresses(address, public):
    assert is_public(address) == public


def test_files_from_addresses(chat, monkeypatch, tmp_path):
    """What is fetched, from a server here that is taken for a public one, and what is refused."""

    async def answer(scope, receive, send):
        path = scope["path"]
        headers, body = [], b""
        status = 200 if path in ("/scene.png", "/large") else 302 if path == "/away" else 404
        if path == "/scene.png":
            body = scenes.IMAGE.read_bytes()
        elif path == "/large":
            body = b"x" * 2**16
        elif path == "/away":
            headers = [(b"location", b"http://169.254.169.254/latest")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    running = uvicorn.Server(uvicorn.Config(answer, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    try:
        home = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
        with pytest.raises(BadInput, match="no public address"):
            fetch(f"{home}/scene.png", 2**20)
        with pytest.raises(BadInput, match="no public address"):
            fetch(f"http://localhost:{home.rpartition(':')[2]}/scene.png", 2**20)
        real = fetching.is_public
        monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1" or real(address))
        assert fetch(f"{home}/scene.png", 2**20) == scenes.IMAGE.read_bytes()
        reader = Reader(chat, fetches=True)
        part = {"type": "image_url", "image_url": {"url": f"{home}/scene.png"}}
        assert reader.read([{"role": "user", "content": [part]}])[0]["content"][0]["image"].size == (96, 96)
        for path, words in (
            ("/large", "more than 1,000 bytes"),
            ("/none", "answers 404"),
            ("/away", "no public address"),
        ):
            with pytest.raises(BadInput, match=words):
                fetch(home + path, 1000)
    finally:
        running.should_exit = True
        thread.join()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "nothing"], "Unknown method"),
        (["--model", "/nowhere"], "no model folder"),
        (["--port", "PORT"], "Cannot listen"),
        (["--max-mb", "0"], "greater than or equal to 1"),
        (["--keep", "2.5"], "keep"),
        (["--method", "fastv", "--at", "99"], "99"),
    ],
)
def test_the_command_says_what_is_wrong_before_it_serves(options, words):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(commands, ["serve", *(port if word == "PORT" else word for word in options)])
    assert result.exit_code != 0
    assert words in str(result.exception) + result.output
