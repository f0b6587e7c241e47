"""`--model tokenprune`: any model of a supported family, pruned or not, in lmms-eval's chat protocol."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from tqdm import tqdm

from tokenprune.chat import Chat
from tokenprune.errors import BadInput, Unsupported
from tokenprune.evaluation.lmms_eval.meter import Measured, Meter, RowCost
from tokenprune.evaluation.lmms_eval.responses import key_responses
from tokenprune.evaluation.lmms_eval.settings import NONE, plan_of
from tokenprune.media.clip import Clip
from tokenprune.media.pictures import picture
from tokenprune.media.video import load_video

GENERATE = ("max_new_tokens", "temperature", "top_p", "top_k", "num_beams", "do_sample", "repetition_penalty")
# Keys of task files that are handled here, or that steer the preprocessing of one other model.
OTHERS = ("until", "image_aspect_ratio", "modality", "max_tokens", "llava", "neo_ov")
LONGEST = 1024
Settings = tuple[tuple[str, Any], ...]

key_responses()


@lru_cache(maxsize=1)
def load(pretrained: str, device: str, pixels: Settings, options: Settings) -> Chat:
    """The model, kept for the next harness run in this process: a grid asks for it cell by cell."""
    return Chat.load(pretrained, device=device, pixels=dict(pixels), **dict(options))


class Tokenprune(lmms):
    """A Hugging Face vision-language model with `tokenprune.prune` around its generation.

    Arguments of `--model_args`: pretrained, method (a method's name, a recipe's name or file; `none` is the unpruned
    baseline), what else `tokenprune.prune` takes (keep, at, positions, turns, scope, and the method's options), and of
    the model dtype, revision, attn_implementation, trust_remote_code, min_pixels, max_pixels, max_num_frames or fps,
    system_prompt. All of them are part of lmms-eval's cache key, and so is what a recipe says.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        method: str = NONE,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_num_frames: int | None = None,
        fps: float | None = None,
        system_prompt: str | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1 or max_batch_size is not None:
            raise BadInput(f"batch_size={batch_size!r}: give a number from 1 on; it is not searched for.")
        self.plan = plan_of(method, options)
        # Without a GPU several ranks meet through gloo.
        gpu = torch.cuda.is_available() and str(device) != "cpu"
        self.accelerator = Accelerator(cpu=not gpu)
        if gpu and self.accelerator.num_processes > 1:
            device = f"cuda:{self.accelerator.local_process_index}"
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.batch_size, self.device = int(batch_size), torch.device(device or ("cuda" if gpu else "cpu"))
        self.system_prompt = self._resolve_system_prompt(system_prompt) if system_prompt else ""
        self.frames, self.fps = max_num_frames, fps
        asked = dict(
            revision=revision, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code, dtype=dtype
        )
        pixels = dict(min_pixels=min_pixels, max_pixels=max_pixels)
        self.chat = load(pretrained, str(self.device), _read_settings(pixels), _read_settings(asked))

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests, each with its token counts and what its prompt cost."""
        found: list[GenerationResult | None] = [None] * len(requests)
        elapsed = produced = 0.0
        run = self.plan.attach(self.chat.model)
        try:
            with (
                Meter(self.chat.model, run) as meter,
                tqdm(total=len(requests), disable=self.rank != 0, desc="tokenprune") as bar,
            ):
                for indices, conversations, settings in self._batches(requests):
                    began = time.perf_counter()
                    texts, lengths = self._generate(conversations, settings)
                    elapsed += time.perf_counter() - began
                    (costs,) = meter.take()
                    produced += sum(length for _, length in lengths)
                    beams = len(costs) // len(indices)
                    for i, text, length, cost in zip(indices, texts, lengths, costs[::beams], strict=True):
                        found[i] = GenerationResult(text, _counts(length, cost))
                    bar.update(len(indices))
        finally:
            if run is not None:
                run.remove()
        log_metrics(elapsed, int(produced), produced / elapsed if elapsed else 0.0, {"rank": self.rank})
        return found

    def _batches(self, requests: list[Instance]) -> Iterator[tuple[list[int], list[list[dict]], dict[str, Any]]]:
        """Requests side by side that are asked alike: the same generation settings and the same kinds of media.

        Documents are opened batch by batch. What has no picture is not put beside what has one.
        """
        waiting: dict[str, tuple[list[int], list[list[dict]], dict[str, Any]]] = defaultdict(lambda: ([], [], {}))
        for i, request in enumerate(requests):
            _, to_messages, settings, doc_id, task, split = request.args
            conversation = self._conversation(to_messages(self.task_dict[task][split][doc_id]))
            kinds = sorted({part["type"] for message in conversation for part in message["content"]})
            key = json.dumps([settings, kinds], sort_keys=True, default=str)
            indices, conversations, own = waiting[key]
            own.update(settings)
            indices.append(i)
            conversations.append(conversation)
            if len(indices) == self.batch_size:
                yield waiting.pop(key)
        yield from waiting.values()

    def _conversation(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages of the chat protocol with pictures and videos opened."""
        found = [
            {"role": message["role"], "content": [self._part(part) for part in message["content"]]}
            for message in messages
        ]
        return self._apply_system_prompt(found, self.system_prompt)

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        kind = part["type"]
        if kind == "text":
            return {"type": "text", "text": part["text"]}
        if kind == "image":
            return {"type": "image", "image": picture(part["url"])}
        if kind == "video":
            if part.get("start_time") is not None or part.get("end_time") is not None:
                raise Unsupported("A task that asks about a piece of a video (start_time, end_time) is not supported.")
            clip = part["url"]
            loaded = clip if isinstance(clip, Clip) else load_video(clip, frames=self.frames, fps=self.fps)
            return {"type": "video", "video": loaded}
        raise Unsupported(f"A task with {kind} content is not supported; there are text, image and video.")

    @torch.inference_mode()
    def _generate(
        self, conversations: list[list[dict]], settings: dict[str, Any]
    ) -> tuple[list[str], list[tuple[int, int]]]:
        """Texts, and lengths of prompt and answer in tokens."""
        unknown = [name for name in settings if name not in (*GENERATE, *OTHERS)]
        if unknown:
            raise Unsupported(f"The task asks for generation settings that are not known: {', '.join(unknown)}.")
        inputs = self.chat.batch(conversations)
        model: Any = self.chat.model
        words = self.chat.processor.tokenizer
        ids = model.generate(**inputs, **generation(settings), pad_token_id=_padding(words))
        width, prompts = inputs["input_ids"].shape[1], inputs["attention_mask"].sum(1).tolist()
        stop = settings.get("until") or []
        stops = [stop] if isinstance(stop, str) else stop
        ends = {words.eos_token_id, *_list(model.generation_config.eos_token_id)}
        texts, lengths = [], []
        for new, prompt in zip(ids[:, width:].tolist(), prompts, strict=True):
            end = next((i + 1 for i, token in enumerate(new) if token in ends), len(new))
            text = self.chat.processor.decode(new[:end], skip_special_tokens=True).strip()
            texts.append(min((text.split(mark)[0] for mark in stops if mark), key=len, default=text))
            lengths.append((prompt, end))
        return texts, lengths

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported: tasks of multiple choice by likelihood have no answer that could be timed."""
        raise Unsupported("Tasks by loglikelihood are not supported; choose a task that generates its answer.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported: a later round must not be answered from what was kept for an earlier one."""
        raise Unsupported("Tasks of several rounds are not supported; choose a task of one round.")

    def clean(self) -> None:
        """Forget this harness run; the model stays loaded for the next one in this process."""
        self.task_dict: Any = {}


def generation(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of generate() for the settings of a task, which stay as they are.

    Greedy unless a temperature above 0 or do_sample asks for more, as in lmms-eval's own models.
    """
    found = {name: settings[name] for name in GENERATE if settings.get(name) is not None}
    found.setdefault("max_new_tokens", settings.get("max_tokens") or LONGEST)
    sampled = found.get("temperature", 0) > 0 or (found.get("do_sample", False) and "temperature" not in found)
    if not sampled:
        found = {name: value for name, value in found.items() if name not in ("temperature", "top_p", "top_k")}
    return found | {"do_sample": sampled}


def _read_settings(options: dict[str, Any]) -> Settings:
    return tuple((name, value) for name, value in options.items() if value is not None)


def _counts(length: tuple[int, int], cost: RowCost) -> Measured:
    return Measured(input_tokens=length[0], output_tokens=length[1], cost=cost)


def _padding(words: Any) -> int | None:
    return words.eos_token_id if words.pad_token_id is None else words.pad_token_id


def _list(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
