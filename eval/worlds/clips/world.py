"""Clips as a world: short videos, a small Qwen2.5-VL, and every video method on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from eval.worlds.base import Field, Lesson, Seen, Settings, World
from eval.worlds.clips.draw import COLOURS, EVENTS, FRAMES, KINDS, SIDE, SIZE, STEPS, WAYS, Clip, make_clip
from eval.worlds.clips.encoder import Prompt, encode, patches, rope_of
from eval.worlds.clips.model import WIDTH, make_model, make_tokenizer, save
from eval.worlds.clips.questions import ASK
from tokenprune import scenes
from tokenprune.media.clip import Clip as Video
from tokenprune.methods.registry import all_methods

FPS = 8.0  # of which two frames make a step of a quarter of a second
SHOWN = 6  # steps of a clip that the encoder learns from
PROMPTS = (Prompt(), Prompt(late=True), Prompt(pictures=2 * STEPS), Prompt(pictures=STEPS))
SHARES = (0.35, 0.15, 0.25, 0.25)
KEEPS = (0.5, 0.25, 0.1)
BESIDE = ("random", "uniform", "downsample", "divprune", "todre", "fastv")  # what they are held against
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "fastvid": [{"variant": "onevision"}, {"variant": "qwen"}],
    "quota": [{"score": "text"}],
    "random": [{"seed": 0}, {"seed": 1}],
    "todre": [{"source": "received"}],  # the model's encoder has no CLS token
}


class Clips(World):
    """Fields say where a token's actor is going and whether it is just appearing or changing; a flag for a flash."""

    name, title = "clips", "Scenes-video: video methods at keep 50, 25 and 10 %"
    media, model, seed = "video", scenes.VIDEO_MODEL, 1116
    shape, tokens = (FRAMES, SIZE, SIZE, 3), STEPS * SIDE * SIDE
    ask, judged_at_once = ASK, 20
    heldout_count, compare_count = 150, 40
    decodes = True
    draw = staticmethod(make_clip)
    make_tokenizer, make_model, save = staticmethod(make_tokenizer), staticmethod(make_model), staticmethod(save)
    settings = Settings(tower_batch=16, decoder_batch=16, tower_steps=1100, decoder_steps=1000, align_until=0.6)
    check = 192
    pack = (*("first", "last", "count", "change"), *("colour",) * 2, *("direction",) * 3, *("when",) * 3)
    lengths = (12,)
    weights = {"when": 2.0, "colour": 1.5}
    fields = (
        Field("kind", KINDS),
        Field("colour", tuple(COLOURS)),
        Field("way", tuple(WAYS)),
        Field("event", ("appear", "change"), unnamed=1, weights=(0.3, 3.0, 3.0)),  # what happens is rare
    )
    flag, flags, width = "flash", 1, WIDTH
    head, tail = ("<s>", "<user>", "<|vision_start|>"), ("<|vision_end|>",)

    def show(self, pixels: np.ndarray) -> Video:
        times = [i / FPS for i in range(len(pixels))]
        return Video([Image.fromarray(frame) for frame in pixels], times, len(pixels))

    def longest(self, kind: str) -> int:
        return 3

    def cells(self) -> Iterator[dict[str, Any]]:
        """All but `streamvln`, which needs the geometry of the scene: these clips have none."""
        names = [n for n, cls in all_methods().items() if "video" in cls.kind and n != "streamvln"]
        for keep in KEEPS:
            for method in [*BESIDE, *names]:
                for options in VARIANTS.get(method, [{}]):
                    yield {"method": method, "options": options, "keep": keep}

    def share(self, rng: np.random.Generator) -> Prompt:
        return PROMPTS[int(rng.choice(len(PROMPTS), p=SHARES))]

    def lesson(self, rng: np.random.Generator, shared: Prompt) -> Lesson:
        """A type that the clip cannot answer gives its place to a question for a direction; the encoder is shown the
        steps at which something happens, and some others."""
        clip = self.draw(rng)
        asked = [ASK[kind](rng, clip) or ASK["direction"](rng, clip) for kind in self.pack]
        frames = shared.frames
        last = frames[1::2]
        events = {step for actor in clip.actors for step in (actor.step, actor.change) if step >= 0}
        told = [i for i, frame in enumerate(last) if frame // 2 in events]
        steps = [*told, *(s for s in rng.permutation(len(last)).tolist() if s not in told)]
        flashes = torch.tensor([float(frame // 2 in clip.flashes) for frame in last])
        return Lesson(
            pixels=patches(clip.pixels[frames]).to(torch.bfloat16),
            owner=torch.from_numpy(labels(clip, shared)),
            flags=flashes[:, None, None],
            shown=torch.tensor(steps[:SHOWN]),
            asked=(asked,),
        )

    def between(self, shared: Prompt) -> tuple[str, ...]:
        return (*self.tail, self.head[-1]) if shared.pictures else ()

    def tower(self, model: Qwen2_5_VLForConditionalGeneration) -> nn.Module:
        return model.model.visual

    def projector(self, model: Qwen2_5_VLForConditionalGeneration) -> nn.Module:
        return model.model.visual.merger

    def see(self, model: Qwen2_5_VLForConditionalGeneration) -> Callable[[Tensor], Seen]:
        """The features that the decoder reads, the merger's, each with flags."""
        run = torch.compile(encode, dynamic=False)

        def look(pixels: Tensor) -> Seen:
            tokens = run(model.model.visual, pixels)
            return Seen(tokens, tokens)

        return look

    def rope(self, model: Qwen2_5_VLForConditionalGeneration, pixels: Tensor, shared: Any) -> tuple[Tensor, Tensor]:
        return rope_of(model.model.language_model, shared, len(self.pack), *self.lengths)


def labels(clip: Clip, prompt: Prompt = PROMPTS[0]) -> np.ndarray:
    """int64 [T, 16, 4]: kind, colour, way and event of what is on each token, -1 for background, and for way and event
    where a picture stands still."""
    last = prompt.frames[1::2]
    found = np.full((len(last), SIDE * SIDE, 4), -1)
    for i, actor in enumerate(clip.actors):
        for row, frame in enumerate(last):
            if not actor.is_there(frame):
                continue
            way = actor.way if actor.place(frame) != actor.place(frame - 1) else "nowhere"
            moves = (list(WAYS).index(way), EVENTS.index(actor.event(frame // 2)))
            known = (
                KINDS.index(actor.kind),
                list(COLOURS).index(actor.colour_at(frame)),
                *((-1, -1) if prompt.pictures else moves),
            )
            found[row, clip.owner[frame // 2] == i] = known
    return found


CLIPS = Clips()
