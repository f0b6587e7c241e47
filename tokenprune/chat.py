"""Questions about pictures and videos, to any supported model: load, ask, time."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    PreTrainedModel,
    TextIteratorStreamer,
)
from transformers.video_utils import VideoMetadata

from tokenprune import scenes
from tokenprune.errors import BadInput, unknown
from tokenprune.families.registry import family_of
from tokenprune.media.clip import Clip
from tokenprune.media.pictures import picture
from tokenprune.media.qwen import FrameProcessor
from tokenprune.media.target import Target
from tokenprune.media.video import load_video

PIXELS = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}  # as the processors of Qwen call them


@dataclass
class Chat:
    """A model with its processor."""

    model: PreTrainedModel
    processor: Any

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        pixels: dict[str, int] | None = None,
        **options: Any,
    ) -> Chat:
        """Load from a folder or a hub id; `scenes`, `scenes-video` and `pages` are the bundled models.

        device: default a GPU where there is one. dtype: default float32 on a CPU, the checkpoint's type on a GPU.
        pixels: `min_pixels` and `max_pixels` of Qwen processors, for images and frames of videos. options: of
        `from_pretrained`, such as revision, attn_implementation, trust_remote_code.

        Raises `BadInput` where the model, its processor or its prompt format cannot be had.
        """
        name = scenes.NAMED.get(str(name), name)
        if str(name).startswith((".", "/", "~")) and not Path(name).is_dir():
            raise BadInput(f"There is no model folder at {name}.")
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if dtype is None:
            dtype = "auto" if device.type == "cuda" else torch.float32
        pixels = _check_pixels(pixels or {})
        source = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
        try:
            processor = _load(name, AutoProcessor, **source, **pixels)
        except BadInput:
            if find_spec("torchvision") is not None or not FrameProcessor.serves(name):
                raise
            processor = FrameProcessor.load(name, pixels)
        _check_heard(processor, pixels)
        if not getattr(processor, "chat_template", None) and not _is_plain(processor):
            raise BadInput(f"The processor of {str(name)!r} has no chat template, so its prompt format is not known.")
        model = _load(name, AutoModelForImageTextToText, dtype=dtype, **options)
        return cls(model.to(device).eval(), processor)

    def inputs(self, shown: Image.Image | str | Path | Clip, question: str) -> BatchFeature:
        """Model inputs for one user turn with one image (open or a file) or one video."""
        if not question.strip():
            raise BadInput("The prompt is empty. Ask something about what is shown.")
        kind = "video" if isinstance(shown, Clip) else "image"
        content = [{"type": kind, kind: shown}, {"type": "text", "text": question}]
        return self.batch([[{"role": "user", "content": content}]])

    def load_video(self, path: str | Path, **options: Any) -> Clip:
        """A clip as `tokenprune.load_video` gives it, its frames held no larger than this model can use.

        Frames of more than twice the size that the processor resizes them to are divided by a whole number while they
        are decoded. The model's inputs are those of whole frames, but for the rounding of one more resize.
        """
        return load_video(path, **options, target=Target.of(self.processor))

    def batch(self, conversations: list[list[dict[str, Any]]]) -> BatchFeature:
        """Model inputs of conversations side by side, padded on the left.

        A conversation is a list of messages {"role", "content"}; content is a list of {"type": "text", "text"},
        {"type": "image", "image": PIL image or file} and {"type": "video", "video": Clip}.

        Raises `BadInput` for a prompt that is longer than the model has positions.
        """
        images, clips = (_media(conversations, kind) for kind in ("image", "video"))
        images = [[picture(one) for one in row] for row in images]
        family = family_of(self.model)
        if any(clips) and "video" not in family.media:
            raise BadInput(f"A {family.name} model takes no videos. Give it an image, or another model.")
        texts = [self._text(conversation) for conversation in conversations]
        options: dict[str, Any] = {"text": texts, "return_tensors": "pt"}
        if any(images):
            options["images"] = (
                images if len(images) > 1 and not isinstance(self.processor, FrameProcessor) else _flat(images)
            )
        if any(clips):
            options |= self._videos(_flat(clips))
        if len(texts) > 1:
            self.processor.tokenizer.padding_side = "left"
            options["padding"] = True
        inputs = self.processor(**options).to(self.model.device)
        self._check_length(inputs)
        return inputs

    def _check_length(self, inputs: BatchFeature) -> None:
        """Raise `BadInput` for a prompt with more positions than the model was made for: it would answer nonsense."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is None:
            return
        family, ids = family_of(self.model), inputs["input_ids"]
        base, rows = family.base(self.model), inputs["attention_mask"].bool()
        taken = rows.sum(1)
        if int(taken.max()) > limit and hasattr(base, "get_rope_index"):  # M-RoPE: a picture takes few positions
            known = inspect.signature(base.get_rope_index).parameters
            places, _ = base.get_rope_index(**{name: inputs[name] for name in known if name in inputs})
            taken = torch.where(rows, places, -1).amax((0, 2)) + 1
        row = int(taken.argmax())
        if taken[row] <= limit:
            return
        visual = torch.isin(ids[row], ids.new_tensor(list(family.placeholders(self.model).values())))
        shown, text = int(visual.sum()), int((rows[row] & ~visual).sum())
        mend = "Ask a shorter question." if text > limit // 2 else "Show a smaller picture or fewer frames."
        raise BadInput(
            f"The prompt takes {int(taken[row])} positions ({text} tokens of text and {shown} visual ones), but the "
            f"model has {limit}. {mend}"
        )

    def _text(self, conversation: list[dict[str, Any]]) -> str:
        if not _is_plain(self.processor):
            bare = [message | {"content": [_bare(part) for part in message["content"]]} for message in conversation]
            return self.processor.apply_chat_template(bare, add_generation_prompt=True, tokenize=False)
        parts = [part for message in conversation for part in message["content"]]
        images = sum(part["type"] == "image" for part in parts)
        words = "\n".join(part["text"] for part in parts if part["type"] == "text")
        return f"{self.processor.image_token * images}{words}"

    def _videos(self, clips: list[Clip]) -> dict[str, Any]:
        """Clips as the processor wants them; their frames are sampled already."""
        if isinstance(self.processor, FrameProcessor):
            return {"videos": clips}
        seen = [
            VideoMetadata(
                total_num_frames=len(clip.frames),
                fps=clip.fps,
                frames_indices=list(range(len(clip.frames))),
                duration=len(clip.frames) / clip.fps,
            )
            for clip in clips
        ]
        frames = [np.stack([np.asarray(frame) for frame in clip.frames]) for clip in clips]
        return {"videos": frames, "do_sample_frames": False, "video_metadata": seen}

    @torch.inference_mode()
    def answer(self, inputs: BatchFeature, max_new_tokens: int) -> tuple[str, float]:
        """Greedy answer and the seconds it took, vision encoder included."""
        began = time.perf_counter()
        generate: Any = self.model.generate
        ids = generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        text = self.processor.decode(ids[0, inputs["input_ids"].shape[1] :].tolist(), skip_special_tokens=True)
        return text.strip(), time.perf_counter() - began

    def stream(self, inputs: BatchFeature, max_new_tokens: int) -> Iterator[str]:
        """The greedy answer as far as it is known, again and again while it grows; the last one is whole."""
        words = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failed: list[BaseException] = []
        generate: Any = self.model.generate

        def answer() -> None:
            try:
                with torch.inference_mode():
                    generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=words)
            except BaseException as error:
                failed.append(error)
                words.end()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        text = ""
        try:
            for piece in words:
                text += piece
                yield text.strip()
        finally:
            thread.join()  # also where nobody waits for the rest: the model is busy until then
        if failed:
            raise failed[0]


def _media(conversations: list[list[dict[str, Any]]], kind: str) -> list[list[Any]]:
    """Images or clips of each conversation, in reading order."""
    return [
        [part[kind] for message in conversation for part in message["content"] if part["type"] == kind]
        for conversation in conversations
    ]


def _check_pixels(pixels: dict[str, int]) -> dict[str, int]:
    """`pixels` where they are two sensible limits."""
    for name, value in pixels.items():
        if name not in PIXELS:
            raise unknown("pixels", name, PIXELS)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadInput(f"pixels[{name!r}]={value!r} must be a whole number from 1 on.")
    if len(pixels) == 2 and pixels["min_pixels"] > pixels["max_pixels"]:
        raise BadInput(f"pixels={pixels} has its least above its most.")
    return pixels


def _check_heard(processor: Any, pixels: dict[str, int]) -> None:
    """Refuse where one of the processors did not take `pixels` over."""
    for part in ("image_processor", "video_processor"):
        own = getattr(processor, part, None)
        size = dict(getattr(own, "size", None) or {})
        least, most = size.get("shortest_edge"), size.get("longest_edge")
        if "min_pixels" in pixels and least is not None and most is not None and least > most:
            raise BadInput(f"min_pixels={least} is above the max_pixels={most} of this model. Give both.")
        if own is not None and any(size.get(PIXELS[name]) != value for name, value in pixels.items()):
            raise BadInput(f"The {type(own).__name__} of this model does not take pixels={pixels}. Leave it out.")


def _flat(rows: list[list[Any]]) -> list[Any]:
    return [one for row in rows for one in row]


def _bare(part: dict[str, Any]) -> dict[str, Any]:
    """A part without its pixels, for the chat template."""
    return {key: value for key, value in part.items() if key in ("type", "text")}


def _is_plain(processor: Any) -> bool:
    """PaliGemma has no chat format: its prompt is the image and a task or question."""
    return type(processor).__name__ == "PaliGemmaProcessor"


def _load(name: str | Path, kind: Any, **options: Any) -> Any:
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"Cannot load a vision-language model from {str(name)!r}: {first}") from error
