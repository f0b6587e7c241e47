"""Tiny models of the LLaVA line."""

from __future__ import annotations

import inspect

import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PixtralVisionConfig,
    Qwen2Config,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from tests.tiny.base import (
    BREAK,
    END,
    IMAGE,
    SIDE,
    START,
    TEXT,
    TOWER,
    VIDEO,
    Picture,
    Tiny,
    Video,
    clip,
    frames,
    joined,
    llama,
    pictures,
    siglip,
    stacked,
)

PINPOINTS = [[24, 48], [48, 24], [48, 48]]


class TinyLlava(Tiny):
    """36 tokens per image."""

    name = "llava"
    model_class = LlavaForConditionalGeneration
    cls = True

    def config(self):
        return LlavaConfig(vision_config=clip(), text_config=llama(), image_token_index=IMAGE, image_seq_length=36)

    def spans(self, part):
        return [(1, SIDE, SIDE)]

    def media(self, rows, made):
        return stacked(rows, made)


class TinyLlavaSiglip(TinyLlava):
    """The same with a tower that has no CLS token."""

    name = "llava-siglip"
    cls = False

    def config(self):
        return LlavaConfig(
            vision_config=siglip(),
            text_config=llama(),
            image_token_index=IMAGE,
            image_seq_length=36,
            vision_feature_select_strategy="full",
        )


class TinyVipLlava(TinyLlava):
    name = "vipllava"
    model_class = VipLlavaForConditionalGeneration

    def config(self):
        config = VipLlavaConfig(vision_config=clip(), text_config=llama(), image_token_index=IMAGE, image_seq_length=36)
        for name in ("vision_feature_layer", "vision_feature_layers"):
            if hasattr(config, name):
                setattr(config, name, [-2, 1])
        return config


class TinyPixtral(Tiny):
    """LLaVA with a Pixtral tower: a break token after each row of tokens but the last."""

    name = "pixtral"
    model_class = LlavaForConditionalGeneration
    placeholder = (IMAGE, BREAK)

    def config(self):
        return LlavaConfig(
            vision_config=PixtralVisionConfig(**TOWER | {"image_size": 64}),
            text_config=llama(),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )

    pixels = 4

    def spans(self, part):
        return [(1, part.h, part.w)]

    def ids(self, part):
        row = [IMAGE] * part.w + [BREAK]
        return [START, *(row * part.h)[:-1], END]

    def media(self, rows, made):
        sizes = [(self.pixels * p.h, self.pixels * p.w) for p in pictures(rows)]
        if not sizes:
            return {}
        tall, wide = (max(s) for s in zip(*sizes, strict=True))
        pixels = torch.zeros(len(sizes), 3, tall, wide)
        for image, (h, w) in zip(pixels, sizes, strict=True):
            image[:, :h, :w] = torch.randn(3, h, w, generator=made)
        return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}


class TinyLlavaNext(Tiny):
    """A base image and tiles; a picture of h x w is 8 h x 8 w pixels before it is cut."""

    name = "llava_next"
    model_class = LlavaNextForConditionalGeneration
    config_class = LlavaNextConfig
    cls = True

    def config(self):
        return self.config_class(
            vision_config=clip(), text_config=llama(), image_token_index=IMAGE, image_grid_pinpoints=PINPOINTS
        )

    def tiles(self, picture: Picture) -> tuple[int, int]:
        """The pinpoint that shows most of the picture, then the smallest: worked out by hand for the tests' sizes."""
        known = {(4, 6): (2, 2), (3, 4): (1, 2), (4, 3): (2, 1), (4, 4): (2, 2), (5, 3): (2, 1), (2, 6): (1, 2)}
        return known[picture.h, picture.w]

    def spans(self, part):
        rows, columns = (SIDE * n for n in self.tiles(part))
        # The shorter side of the padded picture loses the same number of rows (columns) on both ends.
        if part.w / part.h > columns / rows:
            lost = (rows - int(round(part.h * columns / part.w, 7))) // 2
            rows -= 2 * lost
        else:
            lost = (columns - int(round(part.w * rows / part.h, 7))) // 2
            columns -= 2 * lost
        return [(1, SIDE, SIDE), (1, rows, columns)]

    def ids(self, part):
        (_, _, _), (_, h, w) = self.spans(part)
        return [START, *[IMAGE] * (SIDE * SIDE + h * (w + 1)), END]

    def media(self, rows, made):
        found = pictures(rows)
        if not found:
            return {}
        counts = [1 + a * b for a, b in map(self.tiles, found)]
        pixels = joined([torch.randn(1, n, 3, 24, 24, generator=made) for n in counts])
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[8 * p.h, 8 * p.w] for p in found])}


class TinyLlavaNextVideo(TinyLlavaNext):
    """Videos of 3 x 3 tokens per frame."""

    name = "llava_next_video"
    model_class = LlavaNextVideoForConditionalGeneration
    placeholder = (IMAGE, VIDEO)
    has_video = True

    def config(self):
        return LlavaNextVideoConfig(
            vision_config=clip(),
            text_config=llama(),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=PINPOINTS,
        )

    def spans(self, part):
        return [(part.t, 3, 3)] if isinstance(part, Video) else super().spans(part)

    def ids(self, part):
        return Tiny.ids(self, part) if isinstance(part, Video) else super().ids(part)

    def media(self, rows, made):
        return super().media(rows, made) | frames(rows, made)


class TinyLlavaOnevision(TinyLlavaNextVideo):
    """SigLIP without CLS; one newline after each video."""

    name = "llava_onevision"
    model_class = LlavaOnevisionForConditionalGeneration
    cls = False

    def config(self):
        return LlavaOnevisionConfig(
            vision_config=siglip(),
            text_config=Qwen2Config(**TEXT),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=PINPOINTS,
        )

    def ids(self, part):
        if isinstance(part, Video):
            return [START, *[VIDEO] * (part.t * 9 + 1), END]
        return super().ids(part)


class TinyVideoLlava(TinyLlava):
    """Frames of a CLS token and 36 patches."""

    name = "video_llava"
    model_class = VideoLlavaForConditionalGeneration
    placeholder = (IMAGE, VIDEO)
    has_video = True

    def config(self):
        return VideoLlavaConfig(
            vision_config=clip(), text_config=llama(), image_token_index=IMAGE, video_token_index=VIDEO
        )

    def spans(self, part):
        return [(part.t if isinstance(part, Video) else 1, SIDE, SIDE)]

    def ids(self, part):
        if isinstance(part, Video):
            return [START, *[VIDEO] * (part.t * (SIDE * SIDE + 1)), END]
        return super().ids(part)

    def media(self, rows, made):
        images = super().media(rows, made)
        if "pixel_values" not in inspect.signature(self.model_class.forward).parameters:  # before transformers 5.23
            images = {f"{name}_images": value for name, value in images.items()}
        return images | frames(rows, made)
