"""One question about one picture or video, to any supported model: load, ask, time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature, PreTrainedModel
from transformers.video_utils import VideoMetadata

from tokenprune.errors import BadInput
from tokenprune.families.registry import family_of
from tokenprune.frames import FrameProcessor
from tokenprune.video import Clip


@dataclass
class Chat:
    """A model with its processor."""

    model: PreTrainedModel
    processor: Any

    @classmethod
    def load(cls, name: str | Path) -> Chat:
        """Load from a folder or a hub id; float32 on a CPU, the checkpoint's type on a GPU."""
        if str(name).startswith((".", "/", "~")) and not Path(name).is_dir():
            raise BadInput(f"There is no model folder at {name}.")
        gpu = torch.cuda.is_available()
        try:
            processor = _loaded(name, AutoProcessor)
        except BadInput:
            if find_spec("torchvision") is not None or not FrameProcessor.serves(name):
                raise
            processor = FrameProcessor.load(name)
        if not getattr(processor, "chat_template", None) and not _is_plain(processor):
            raise BadInput(f"The processor of {str(name)!r} has no chat template, so its prompt format is not known.")
        model = _loaded(name, AutoModelForImageTextToText, dtype="auto" if gpu else torch.float32)
        return cls(model.to("cuda" if gpu else "cpu").eval(), processor)

    def inputs(self, shown: Image.Image | Clip, question: str) -> BatchFeature:
        """Model inputs for one user turn with one image or one video."""
        if not question.strip():
            raise BadInput("The prompt is empty. Ask something about what is shown.")
        if isinstance(shown, Clip):
            return self._video(shown, question)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        turn = [{"role": "user", "content": content}]
        if _is_plain(self.processor):
            text = f"{self.processor.image_token}{question}"
        else:
            text = self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return self.processor(images=shown, text=text, return_tensors="pt").to(self.model.device)

    def _video(self, clip: Clip, question: str) -> BatchFeature:
        if "video" not in family_of(self.model).media:
            raise BadInput(f"A {family_of(self.model).name} model takes no videos. Give it an image, or another model.")
        content = [{"type": "video"}, {"type": "text", "text": question}]
        turn = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        if isinstance(self.processor, FrameProcessor):
            return self.processor(text=text, videos=[clip]).to(self.model.device)
        frames = np.stack([np.asarray(frame) for frame in clip.frames])
        seen = VideoMetadata(
            total_num_frames=len(frames),
            fps=clip.fps,
            frames_indices=list(range(len(frames))),
            duration=len(frames) / clip.fps,
        )
        options = {"videos": [frames], "do_sample_frames": False, "video_metadata": [seen]}
        return self.processor(text=text, return_tensors="pt", **options).to(self.model.device)

    @torch.inference_mode()
    def answer(self, inputs: BatchFeature, max_new_tokens: int) -> tuple[str, float]:
        """Greedy answer and the seconds it took, vision encoder included."""
        began = time.perf_counter()
        ids = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        text = self.processor.decode(ids[0, inputs["input_ids"].shape[1] :].tolist(), skip_special_tokens=True)
        return text.strip(), time.perf_counter() - began


def _is_plain(processor: Any) -> bool:
    """PaliGemma has no chat format: its prompt is the image and a task or question."""
    return type(processor).__name__ == "PaliGemmaProcessor"


def _loaded(name: str | Path, kind: type, **options: Any) -> Any:
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"Cannot load a vision-language model from {str(name)!r}: {first}") from error
