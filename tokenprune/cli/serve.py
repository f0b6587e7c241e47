"""`tokenprune serve`: an OpenAI-compatible server."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tokenprune.cli.listen import check_port
from tokenprune.cli.parse import read_plan
from tokenprune.errors import BadInput

out = Console()
NEEDED = ("fastapi", "uvicorn", "openai", "prometheus_client")


def serve(
    context: typer.Context,
    model: Annotated[
        str, typer.Option(help="Folder or hub id; scenes, scenes-video, pages: the bundled ones.")
    ] = "scenes",
    method: Annotated[str, typer.Option(help="Method, recipe or YAML file; none: unpruned.")] = "divprune",
    keep: Annotated[str | None, typer.Option(help="What survives: 0.1 = a tenth, 58 = 58 tokens.")] = None,
    at: Annotated[str | None, typer.Option(help="Decoder layer, pixels, vision:8 or decode.")] = None,
    scope: Annotated[str | None, typer.Option(help="Budgets per part or item of a picture.")] = None,
    positions: Annotated[str | None, typer.Option(help="original or compact ids.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a video, evenly spread.")] = 32,
    max_mb: Annotated[int, typer.Option(min=1, help="Largest request, and largest file in it, in MB.")] = 32,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Open http(s) addresses in requests, public ones alone.")
    ] = False,
    per_request: Annotated[
        bool, typer.Option("--per-request", help="Let requests choose a method within this budget.")
    ] = False,
) -> None:
    """Serve a pruned model to OpenAI's clients: POST /v1/chat/completions with text, image_url and video_url.

    Further options of the method follow as --name value. GET /tokenprune tells the plan and the last report.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise BadInput(f"`tokenprune serve` needs {', '.join(missing)}. Install it: pip install 'tokenprune[serve]'.")
    check_port(host, port)

    import uvicorn
    from transformers.utils import logging

    from tokenprune.chat import Chat
    from tokenprune.plan import Plan
    from tokenprune.serving.app import Server, build_app
    from tokenprune.serving.messages import Reader

    plan = (
        Plan() if method == "none" else read_plan(context.args, method, keep, at=at, scope=scope, positions=positions)
    )
    out.print(f"[dim]loading {escape(model)} ...[/dim]")
    chat = Chat.load(model)
    plan.check(chat.model)
    most = max_mb * 2**20
    server = Server(model, chat, plan, Reader(chat, frames, fetch, most), per_request)
    logging.set_verbosity_error()  # the handler tells every request
    out.print(f"http://{escape(host)}:{port}/v1 serves {escape(model)}  (ctrl-c stops it)", highlight=False)
    uvicorn.run(build_app(server, most), host=host, port=port, log_level="warning")
