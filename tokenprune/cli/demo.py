"""`tokenprune demo`: the app in the browser."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tokenprune.cli.listen import check_port
from tokenprune.errors import BadInput

out = Console()


def demo(
    model: Annotated[str | None, typer.Option(help="Folder or hub id of a model. (default: the bundled ones)")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a video, evenly spread.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
) -> None:
    """Ask about images and videos in the browser: both answers, what every stage left, and what it saved."""
    if find_spec("gradio") is None:
        raise BadInput("`tokenprune demo` needs Gradio. Install it: pip install 'tokenprune[demo]'.")
    check_port(host, port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    out.print("loading ...")

    from tokenprune.demo.app import serve
    from tokenprune.demo.session import Session

    session = Session(model, frames, max_new_tokens)
    out.print(f"http://{escape(host)}:{port}  (ctrl-c stops it)", highlight=False)
    serve(session, host, port)
