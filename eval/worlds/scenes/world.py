"""Scenes as a world: pictures, a small LLaVA, and every image method on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from eval.worlds.base import Field, Lesson, Question, Seen, Settings, World, normalize
from eval.worlds.scenes.draw import COLOURS, GRID, KINDS, SIZE, make_scene
from eval.worlds.scenes.model import WIDTH, make_model, make_processor, make_tokenizer
from eval.worlds.scenes.questions import ASK, box_iou, distance
from eval.worlds.scenes.resized import RESIZED, judge_resized
from tokenprune import scenes
from tokenprune.methods.registry import all_methods

KEEPS = (0.5, 0.25, 0.1, 0.05)
POSITIONS = ("original", "compact")
DEEPER = {"at": 4}  # half of this model's layers, where it has found what it looks for
VARIANTS: dict[str, list[dict[str, Any]]] = {
    **{method: [{}, DEEPER] for method in ("fastv", "dart", "efficientvla", "coarse_to_fine")},
    "fopru": [{"strategy": "rank"}, {"strategy": "row"}],
    "random": [{"seed": 0}, {"seed": 1}, {"seed": 2}],
    "sparsevlm": [{}, {"version": "2"}],
    "todre": [{"objective": "maxmin"}, {"objective": "maxsum"}],
    "prumerge": [{}, {"plus": True}],
}


class Scenes(World):
    """A flag for each kind and colour that a scene holds; a second pack of questions for its caption."""

    name, title = "scenes", "Scenes: every method at keep 50, 25, 10 and 5 %, original positions"
    media, model, seed = "image", scenes.MODEL, 2026
    shape, tokens = (SIZE, SIZE, 3), GRID * GRID
    ask, judged_at_once = ASK, 100
    heldout_count, compare_count = 1000, 60
    baselines = {RESIZED: judge_resized}
    draw = staticmethod(make_scene)
    make_tokenizer, make_model = staticmethod(make_tokenizer), staticmethod(make_model)
    settings = Settings(tower_batch=32, decoder_batch=20, tower_steps=1600, decoder_steps=2900, align_until=0.7)
    check = 160
    # The types that hold the model back longest come more than once.
    pack = (
        *(["colour"] * 2 + ["shape", "digit"] + ["count"] * 6),
        *(["existence"] * 3 + ["position"] * 2 + ["relation"] * 3),
    )
    lengths = (12, 20)
    weights = {"existence": 2.0, "caption": 2.0}
    fields = (
        Field("kind", KINDS),
        Field("colour", tuple(COLOURS)),
        *(Field(axis, tuple(f"{axis}{i}" for i in range(GRID))) for axis in "xy"),
    )
    flag, flags, width = "present", len(KINDS) + len(COLOURS), WIDTH
    head = ("<s>", "<user>")

    def show(self, pixels: np.ndarray) -> Image.Image:
        return Image.fromarray(pixels)

    def longest(self, kind: str) -> int:
        return 20 if kind == "caption" else 4

    def measure(self, pairs: list[tuple[Question, str]]) -> dict[str, float]:
        """For positions the median distance in pixels and the mean IoU of fixed boxes."""
        found = {"questions": len(pairs)}
        if pairs[0][0].type != "position":
            return found
        boxes = [box_iou(*pair) for pair in pairs]
        far = round(median(distance(*pair) for pair in pairs), 2)
        return found | {"median_distance_px": far, "mean_box_iou": round(sum(boxes) / len(boxes), 4)}

    def cells(self) -> Iterator[dict[str, Any]]:
        """Those with original positions first."""
        own = [name for name, cls in all_methods().items() if not ("video" in cls.kind or cls.decodes)]
        for positions in POSITIONS:
            more = [RESIZED] if positions == "compact" else []  # a smaller picture has positions of its own
            for method in [*own, *more]:
                for options in VARIANTS.get(method, [{}]):
                    for keep in KEEPS:
                        yield {"method": method, "options": options, "keep": keep, "positions": positions}

    def lesson(self, rng: np.random.Generator, shared: None = None) -> Lesson:
        """A type that the scene cannot answer gives its place to a position question."""
        scene = self.draw(rng)
        values = np.array([(KINDS.index(t.kind), list(COLOURS).index(t.colour), *t.bin) for t in scene.things])
        owner = np.where(scene.owner[:, None] >= 0, values[scene.owner], -1)
        present = torch.zeros(1, self.flags)
        present[:, values[:, 0]] = present[:, len(KINDS) + values[:, 1]] = 1
        asked = [ASK[kind](rng, scene) for kind in self.pack]
        asked = [question or ASK["position"](rng, scene) for question in asked]
        return Lesson(
            pixels=normalize(scene.pixels)[None],
            owner=torch.from_numpy(owner)[None].long(),
            flags=present,
            shown=torch.tensor([0]),
            asked=(asked, [ASK["caption"](rng, scene)]),
        )

    def tower(self, model: LlavaForConditionalGeneration) -> nn.Module:
        return model.model.vision_tower

    def projector(self, model: LlavaForConditionalGeneration) -> nn.Module:
        return model.model.multi_modal_projector

    def see(self, model: LlavaForConditionalGeneration) -> Callable[[Tensor], Seen]:
        """The features that the decoder reads; flags stand on the CLS token."""
        tower = torch.compile(model.model.vision_tower, dynamic=False)

        def look(pixels: Tensor) -> Seen:
            out = tower(pixels, output_hidden_states=True)
            return Seen(out.hidden_states[-2][:, 1:], out.pooler_output)

        return look

    def project(self, model: LlavaForConditionalGeneration, tokens: Tensor) -> Tensor:
        return model.model.multi_modal_projector(tokens)

    def save(self, model: LlavaForConditionalGeneration, folder: Path) -> None:
        model.to(torch.float16).save_pretrained(folder)
        make_processor().save_pretrained(folder)


SCENES = Scenes()
