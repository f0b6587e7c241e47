"""One request: transformers' own handler of chat completions, on a model that is pruned while it generates."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from openai.types.completion_usage import CompletionUsage
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.utils import GenerationState, Modality

from tokenprune.chat import Chat
from tokenprune.engine.report import Report
from tokenprune.engine.run import Run
from tokenprune.plan import Plan

CHATML = "<|im_start|>"
REMEMBERED = 1000  # plans that need no comparison any more


class Pruned:
    """What the handler takes for the model. `generate` attaches the plan, and leaves the model as it was."""

    def __init__(self, chat: Chat, plan: Plan, verified: set[str]) -> None:
        """verified: plans, written down, whose first prompt has been compared where `prune` compares it."""
        self._chat, self._plan, self._verified = chat, plan, verified
        self.report: Report | None = None  # once it has generated, of a prompt with media
        self.device, self.generation_config = chat.model.device, chat.model.generation_config
        # transformers reads answers of some model types as ChatML, whatever their prompt format is.
        template = getattr(chat.processor, "chat_template", None) or ""
        self.config = SimpleNamespace(model_type=chat.model.config.model_type if CHATML in template else "")

    @torch.inference_mode()
    def generate(self, **options: Any) -> Any:
        """As the model's own; runs on the one thread that generates."""
        options["tokenizer"] = self._chat.processor.tokenizer
        generate: Any = self._chat.model.generate
        shown = any(name.startswith("pixel_values") for name in options)
        written = json.dumps(self._plan.describe(), sort_keys=True)
        verify = "never" if written in self._verified else "auto"
        run = self._plan.attach(self._chat.model, verify) if shown else None
        if run is None:
            return generate(**options)
        with run:
            if "streamer" in options:
                options["streamer"] = Streamer(options["streamer"], lambda: self._note(run))
            found = generate(**options)
            self._note(run)
        if len(self._verified) < REMEMBERED:
            self._verified.add(written)
        return found

    def _note(self, run: Run) -> None:
        self.report = run.report()


class Streamer:
    """Hands tokens on to the handler's, and says that they end before it does: it tells the usage then."""

    def __init__(self, inner: Any, ends: Callable[[], None]) -> None:
        self._inner, self._ends = inner, ends

    def put(self, value: torch.Tensor) -> None:
        """Token ids, as they come."""
        self._inner.put(value)

    def end(self) -> None:
        """No more come."""
        self._ends()
        self._inner.end()


class Ready:
    """What the handler takes for the processor: the inputs are made already."""

    def __init__(self, chat: Chat, inputs: Any) -> None:
        self._processor, self._inputs, self.tokenizer = chat.processor, inputs, chat.processor.tokenizer

    def apply_chat_template(self, *_: Any, **__: Any) -> Any:
        """The inputs, whatever is asked for."""
        return self._inputs

    def decode(self, ids: Any, **options: Any) -> str:
        """Text of token ids, a tensor or a list."""
        return self._processor.decode(ids.tolist() if hasattr(ids, "tolist") else ids, **options)


class Request(ChatCompletionHandler):
    """Answers one request, streamed or whole; what it knows of pruning goes into `usage`."""

    def __init__(self, name: str, chat: Chat, pruned: Pruned, inputs: Any, state: GenerationState) -> None:
        """name: of the model, as answers have it."""
        modality = SimpleNamespace(get_model_modality=lambda model, processor=None: Modality.VLM)
        super().__init__(modality, state)  # type: ignore[arg-type]
        self.name, self.pruned, self.ready = name, pruned, Ready(chat, inputs)

    def _resolve_model(self, body: dict) -> tuple[str, Any, Any]:
        return self.name, self.pruned, self.ready

    @staticmethod
    def get_processor_inputs_from_messages(messages: list[dict], modality: Modality) -> list[dict]:
        """Nothing: they were read before."""
        return []

    def _build_completion(
        self,
        request_id: str,
        content: str,
        model_id: str,
        finish_reason: str,
        usage: CompletionUsage | None = None,
        tool_calls: list[dict] | None = None,
        reasoning_content: str | None = None,
    ) -> dict:
        told = self._tell(usage)
        return super()._build_completion(
            request_id, content, model_id, finish_reason, told, tool_calls, reasoning_content
        )

    def _build_chunk_sse(
        self,
        request_id: str = "",
        content: str | None = None,
        model: str | None = None,
        role: str | None = None,
        finish_reason: str | None = None,
        tool_calls: list | None = None,
        usage: CompletionUsage | None = None,
        reasoning_content: str | None = None,
    ) -> str:
        told = self._tell(usage)
        return super()._build_chunk_sse(
            request_id, content, model, role, finish_reason, tool_calls, told, reasoning_content
        )

    def _tell(self, usage: CompletionUsage | None) -> CompletionUsage | None:
        """`prompt_tokens` counts the prompt as it came; beside it stands what was left of it behind the last stage."""
        report = self.pruned.report
        if usage is None or report is None:
            return usage
        visual = {"dense": report.tokens, "kept": report.final_tokens, "average": report.average_tokens}
        kept = usage.prompt_tokens - report.tokens + report.final_tokens
        return CompletionUsage.model_validate(
            usage.model_dump() | {"tokenprune": {"visual_tokens": visual, "prompt_tokens_kept": kept}}
        )
