"""What a request may ask for, and which plan it is answered with."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenprune.errors import BadInput, unknown
from tokenprune.methods.base import Method
from tokenprune.methods.registry import all_methods
from tokenprune.plan import Plan

UNSERVED = ("tools", "functions", "tool_choice", "logprobs", "top_logprobs", "response_format", "audio", "prediction")


class Body(BaseModel):
    """The fields of a chat completion whose values are looked at; transformers refuses names that OpenAI has not."""

    model_config = ConfigDict(extra="allow")

    messages: list[Any]
    model: str | None = None
    stream: bool | None = False
    n: int | None = Field(1, ge=1, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-0.9, le=2)
    seed: int | None = None
    stop: str | list[str] | None = None
    tokenprune: dict[str, Any] | None = None


def read_body(found: Any) -> Body:
    """Raises `BadInput` that names the field."""
    try:
        body = Body.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{'.'.join(map(str, first['loc'])) or 'The body'}: {first['msg']}.") from error
    asked = [name for name in UNSERVED if (body.model_extra or {}).get(name) not in (None, False, [], "none")]
    if asked:
        raise BadInput(f"{asked[0]} is not served here. Leave it out.")
    return body


def choose_plan(asked: dict[str, Any] | None, own: Plan, allowed: bool) -> Plan:
    """The server's plan, or a request's where that is allowed and keeps no more than the server's."""
    if asked is None:
        return own
    if not allowed:
        raise BadInput("This server prunes by its own plan. Leave tokenprune out, or start it with --per-request.")
    method, options = asked.get("method"), {key: value for key, value in asked.items() if key != "method"}
    if method not in all_methods():
        raise unknown("method", method, all_methods())
    keep, most = (
        options.get("keep"),
        own.what.keep if isinstance(own.what, Method) and hasattr(own.what, "keep") else None,
    )
    if most is None:
        raise BadInput("This server's plan has no single keep= that a request's could be held to.")
    if isinstance(keep, bool) or not isinstance(keep, int | float) or isinstance(keep, int) != isinstance(most, int):
        raise BadInput(f"tokenprune.keep={keep!r} must be a number like this server's, which is {most!r}.")
    if keep > most:
        raise BadInput(f"tokenprune.keep={keep} is above this server's budget of {most}.")
    return Plan.of(method, **options)
