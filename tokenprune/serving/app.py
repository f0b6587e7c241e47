"""The server's routes, its limits and its figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from transformers.cli.serving.utils import GenerationState

from tokenprune.chat import Chat
from tokenprune.errors import TokenpruneError
from tokenprune.plan import Plan
from tokenprune.serving.body import choose_plan, read_body
from tokenprune.serving.messages import Reader
from tokenprune.serving.request import Pruned, Request


class Figures:
    """What `/metrics` tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("tokenprune_requests", "Requests by status", ["status"], registry=self.registry)
        self.tokens = Counter("tokenprune_visual_tokens", "Visual tokens of prompts", ["which"], registry=self.registry)
        self.seconds = Histogram("tokenprune_request_seconds", "From request to whole answer", registry=self.registry)

    def count(self, request: Request | None, status: int, seconds: float) -> None:
        """One request that is over."""
        self.requests.labels(str(status)).inc()
        self.seconds.observe(seconds)
        if request is not None and request.pruned.report is not None:
            self.tokens.labels("dense").inc(request.pruned.report.tokens)
            self.tokens.labels("kept").inc(request.pruned.report.final_tokens)


@dataclass
class Server:
    """A model, what it is pruned with, and what it is called."""

    name: str
    chat: Chat
    plan: Plan
    reader: Reader
    per_request: bool = False
    state: GenerationState = field(default_factory=GenerationState)
    figures: Figures = field(default_factory=Figures)
    verified: set[str] = field(default_factory=set)
    last: dict[str, Any] | None = None  # the newest report

    async def complete(self, found: Any) -> Response:
        """An answer to a chat completion, whole or streamed; what is wrong with it in OpenAI's form."""
        began = time.monotonic()
        try:
            body = read_body(found)
            if body.model not in (None, self.name):
                self.figures.count(None, 404, time.monotonic() - began)
                return refusal(f"There is no model {body.model!r} here, but {self.name!r}.", 404, "model_not_found")
            plan = choose_plan(body.tokenprune, self.plan, self.per_request)
            plan.check(self.chat.model)
            inputs = await asyncio.to_thread(self._prepare, body.messages)
        except TokenpruneError as error:
            self.figures.count(None, 400, time.monotonic() - began)
            return refusal(str(error), 400, "invalid_request_error")
        request = Request(self.name, self.chat, Pruned(self.chat, plan, self.verified), inputs, self.state)
        rest = {key: value for key, value in found.items() if key != "tokenprune"}
        try:
            response = await request.handle_request(rest, f"chatcmpl-{uuid4().hex}")
        except TokenpruneError as error:
            self.figures.count(request, 400, time.monotonic() - began)
            return refusal(str(error), 400, "invalid_request_error")
        if isinstance(response, StreamingResponse):
            response.body_iterator = self._followed(response.body_iterator, request, began)
        else:
            self._finish(request, began)
        return response

    def _prepare(self, messages: list[Any]) -> Any:
        return self.chat.batch([self.reader.read(messages)])

    async def _followed(self, parts: Any, request: Request, began: float) -> AsyncIterator[Any]:
        try:
            async for part in parts:
                yield part
            yield "data: [DONE]\n\n"
        finally:
            self._finish(request, began)

    def _finish(self, request: Request, began: float) -> None:
        self.figures.count(request, 200, time.monotonic() - began)
        if request.pruned.report is not None:
            self.last = request.pruned.report.to_dict()


class BodyLimit:
    """Refuses bodies of more than so many bytes, whatever their headers say; no more than those are held."""

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self.app, self.most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, and hand it on where it is small enough."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        seen, parts = 0, []
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            seen += len(message.get("body", b""))
            if max(seen, int(told) if told.isdigit() else 0) > self.most_bytes:
                text = f"The request has more than {self.most_bytes:,} bytes, this server's limit."
                await refusal(text, 413, "invalid_request_error")(scope, receive, send)
                return
            parts.append(message)
            if not message.get("more_body", False):
                break

        async def replay() -> Message:
            return parts.pop(0) if parts else await receive()

        await self.app(scope, replay, send)


def refusal(text: str, status: int, code: str) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse({"error": {"message": text, "type": kind, "code": code, "param": None}}, status_code=status)


def build_app(server: Server, most_bytes: int) -> FastAPI:
    """The routes of a server; most_bytes: of a request."""
    app = FastAPI(title="tokenprune", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit, most_bytes=most_bytes)

    @app.exception_handler(RequestValidationError)
    async def unreadable(_: HttpRequest, error: RequestValidationError) -> Response:
        server.figures.count(None, 400, 0.0)
        return refusal(f"The body is no JSON object: {error.errors()[0]['msg']}.", 400, "invalid_request_error")

    @app.exception_handler(HTTPException)
    async def refused(_: HttpRequest, error: HTTPException) -> Response:
        server.figures.count(None, error.status_code, 0.0)
        return refusal(str(error.detail), error.status_code, "invalid_request_error")

    @app.exception_handler(Exception)
    async def failed(_: HttpRequest, error: Exception) -> Response:
        server.figures.count(None, 500, 0.0)
        return refusal(f"The server failed with a {type(error).__name__}; its log has more.", 500, "server_error")

    @app.post("/v1/chat/completions")
    async def completions(body: dict[str, Any]) -> Response:
        return await server.complete(body)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": server.name, "object": "model", "owned_by": "tokenprune", "created": 0}],
        }

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/tokenprune")
    def told() -> dict[str, Any]:
        return {"model": server.name, "plan": server.plan.describe(), "last_report": server.last}

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(server.figures.registry), media_type=CONTENT_TYPE_LATEST)

    return app
