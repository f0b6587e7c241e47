"""One question about one picture, to any supported model: load, ask, time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature, PreTrainedModel

from tokenprune.errors import BadInput


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
        processor = _loaded(name, AutoProcessor)
        if not getattr(processor, "chat_template", None) and not _is_plain(processor):
            raise BadInput(f"The processor of {str(name)!r} has no chat template, so its prompt format is not known.")
        model = _loaded(name, AutoModelForImageTextToText, dtype="auto" if gpu else torch.float32)
        return cls(model.to("cuda" if gpu else "cpu").eval(), processor)

    def inputs(self, image: Image.Image, question: str) -> BatchFeature:
        """Model inputs for one user turn with one image."""
        if not question.strip():
            raise BadInput("The prompt is empty. Ask something about the image.")
        content = [{"type": "image"}, {"type": "text", "text": question}]
        turn = [{"role": "user", "content": content}]
        if _is_plain(self.processor):
            text = f"{self.processor.image_token}{question}"
        else:
            text = self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return self.processor(images=image, text=text, return_tensors="pt").to(self.model.device)

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
