"""Inputs of Qwen-VL models where their own processor cannot be loaded: its videos need torchvision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tokenprune.errors import BadInput
from tokenprune.media.clip import Clip

SERVED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TIMED = ("qwen3_vl",)  # write timestamps between the frames of a video, which are not written here


class FrameProcessor:
    """A processor that prepares images, and the frames of videos one by one, with PIL.

    The values are those of the model's own processor: a video's frames are resized each by itself and cut into patches
    of `temporal_patch_size` frames, of which an image repeats one.
    """

    def __init__(self, tokenizer: Any, images: Any, frames: Any, chat_template: str, timed: bool = False) -> None:
        """timed: whether the model's videos have timestamps between their frames, so that videos are refused."""
        self.tokenizer, self.image_processor, self.video_processor = tokenizer, images, frames
        self.chat_template, self.timed = chat_template, timed
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"

    @staticmethod
    def serves(folder: str | Path) -> bool:
        """Whether a folder holds such a model with its processor's settings in processor_config.json."""
        paths = [Path(folder) / name for name in ("config.json", "processor_config.json")]
        if not all(path.is_file() for path in paths):
            return False
        config, settings = (json.loads(path.read_text()) for path in paths)
        return config.get("model_type") in SERVED and {"image_processor", "video_processor"} <= settings.keys()

    @classmethod
    def load(cls, folder: str | Path, pixels: dict[str, Any] | None = None) -> FrameProcessor:
        """From a folder that it `serves`. pixels: `min_pixels` and `max_pixels`, in place of the folder's."""
        if not cls.serves(folder):
            raise BadInput(f"The processor of {str(folder)!r} needs torchvision. Install it: pip install torchvision.")
        settings = json.loads((Path(folder) / "processor_config.json").read_text())
        tokenizer = AutoTokenizer.from_pretrained(folder)
        images, frames = (
            Qwen2VLImageProcessorPil(**{k: v for k, v in settings[name].items() if k in KEPT}, **(pixels or {}))
            for name in ("image_processor", "video_processor")
        )
        template = Path(folder) / "chat_template.jinja"
        written = template.read_text() if template.is_file() else tokenizer.chat_template
        timed = json.loads((Path(folder) / "config.json").read_text())["model_type"] in TIMED
        return cls(tokenizer, images, frames, written, timed)

    def apply_chat_template(self, conversation: list[dict], **options: Any) -> str:
        """The prompt of a conversation, each image and video as one placeholder."""
        return self.tokenizer.apply_chat_template(conversation, chat_template=self.chat_template, **options)

    def decode(self, ids: list[int], **options: Any) -> str:
        """Text of token ids."""
        return self.tokenizer.decode(ids, **options)

    def __call__(
        self,
        text: str | list[str],
        images: Image.Image | list[Image.Image] | None = None,
        videos: list[Clip] | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Model inputs; images and videos go to the placeholders of the texts in order."""
        images = [images] if isinstance(images, Image.Image) else images
        texts = [text] if isinstance(text, str) else text
        data: dict[str, Any] = {}
        counts: dict[str, list[int]] = {self.image_token: [], self.video_token: []}
        if images:
            made = self.image_processor(images=images, return_tensors="pt")
            data |= {name: made[name] for name in ("pixel_values", "image_grid_thw")}
            counts[self.image_token] = self._tokens(made["image_grid_thw"])
        if videos and self.timed:
            raise BadInput(
                "Videos of this model need torchvision, pictures do not. Install it: pip install torchvision."
            )
        if videos:
            pixels, grids = zip(*(self._video(clip) for clip in videos), strict=True)
            data |= {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.tensor(grids)}
            data["second_per_grid_ts"] = [self.video_processor.temporal_patch_size / clip.fps for clip in videos]
            counts[self.video_token] = self._tokens(data["video_grid_thw"])
        for token, own in counts.items():
            asked = sum(t.count(token) for t in texts)
            if asked != len(own):
                raise BadInput(f"The prompt has {asked} {token} for {len(own)} pictures or videos.")
            queue = iter(own)
            texts = ["".join(p if p != token else token * next(queue) for p in _split(t, token)) for t in texts]
        options.setdefault("padding", len(texts) > 1)
        data |= self.tokenizer(
            texts, return_tensors="pt", **{k: v for k, v in options.items() if k != "return_tensors"}
        )
        ids, kinds = data["input_ids"], torch.zeros_like(data["input_ids"])
        for kind, token in enumerate((self.image_token, self.video_token), 1):
            kinds[ids == self.tokenizer.convert_tokens_to_ids(token)] = kind
        data.pop("token_type_ids", None)
        return BatchFeature(data | {"mm_token_type_ids": kinds.int()})

    def _tokens(self, grids: Tensor) -> list[int]:
        return (grids.prod(-1) // self.image_processor.merge_size**2).tolist()

    def _video(self, clip: Clip) -> tuple[Tensor, list[int]]:
        """Patches [n, 3 * time * size * size] and the grid (t, h, w) of a video."""
        deep, size = self.video_processor.temporal_patch_size, self.video_processor.patch_size
        frames = clip.frames + clip.frames[-1:] * (-len(clip.frames) % deep)
        made = self.video_processor(images=frames, return_tensors="pt")
        _, h, w = made["image_grid_thw"][0].tolist()
        single = made["pixel_values"].view(len(frames), h * w, 3, deep, size * size)[:, :, :, 0]
        stacked = single.unflatten(0, (-1, deep)).movedim(1, 3)
        return stacked.flatten(0, 1).flatten(1), [len(frames) // deep, h, w]


KEPT = (
    *(
        "patch_size",
        "merge_size",
        "temporal_patch_size",
        "size",
        "image_mean",
        "image_std",
        "rescale_factor",
        "resample",
    ),
    *("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"),
)


def _split(text: str, token: str) -> list[str]:
    """The text cut before and after each `token`."""
    pieces = [token] * (2 * text.count(token) + 1)
    pieces[::2] = text.split(token)
    return pieces
