"""A server of the library's on a port of its own."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager

import uvicorn

from tokenprune.serving.app import Server, build_app
from tokenprune.serving.messages import Reader


@contextmanager
def served(chat, plan, name="scenes", most_bytes=2**20, **options):
    """A server on a port of its own; its address."""
    reader = Reader(
        chat, most_bytes=most_bytes, **{key: options.pop(key) for key in ("frames", "fetches") if key in options}
    )
    server = Server(name, chat, plan, reader, **options)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = uvicorn.Server(uvicorn.Config(build_app(server, most_bytes), port=port, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join()
