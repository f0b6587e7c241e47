"""Pages as a world: documents, a small Qwen3-VL, and every image method on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

import eval.tasks.utils as tasks
from eval.worlds.base import Field, Lesson, Question, Seen, Settings, World, pick
from eval.worlds.pages.draw import SIZES, Page, choose_size, make_drill, make_page
from eval.worlds.pages.encoder import encode, rope_of
from eval.worlds.pages.model import MARKS, WIDTH, make_model, make_tokenizer, save
from eval.worlds.pages.questions import ASK, BINS
from eval.worlds.pages.sheet import TOKEN
from eval.worlds.pages.text import CHARACTERS
from tokenprune import scenes
from tokenprune.methods.registry import all_methods

KEEPS = (0.5, 0.25, 0.1)
READ_CLS = (  # which this encoder does not have, so they read what tokens receive
    *("agile_ratio", "agilepruner", "fastervlm", "hired", "holov", "prumerge", "todre", "visionzip", "vispruner"),
    "vscan",
)
RECEIVED: dict[str, Any] = {"source": "received"}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    **{name: [RECEIVED] for name in READ_CLS},
    **{name: [{}, {"at": "pixels"}] for name in ("random", "uniform", "downsample")},
    **{name: [{}, {"at": "vision:2", "metric": "keys"}] for name in ("tome", "token_transforming")},
    "illava": [{"at": "vision:2"}],  # its blocks 6 to 9 are of a deeper encoder
}
DRILLED = 0.75  # of what the tower learns from
LOOKED_UP = ("value", "price", "cell")  # types that few kinds of pages can answer, and that take most learning
CLASSES = (*CHARACTERS, *MARKS)


class Pages(World):
    """Fields say which character's centre lies in a token, which one follows in the same token, and where it is;
    flags tell that a word ends there, and that it is of the heading."""

    name, title = "pages", "Pages: every method at keep 50, 25 and 10 %"
    media, model, seed = "image", scenes.PAGES_MODEL, 1127
    shape, tokens = (272, 288, 3), 18 * 17
    ask, judged_at_once = ASK, 20
    heldout_count, compare_count = 1000, 20
    draw = staticmethod(make_page)
    make_tokenizer, make_model, save = staticmethod(make_tokenizer), staticmethod(make_model), staticmethod(save)
    settings = Settings(tower_batch=96, decoder_batch=96, tower_steps=1000, decoder_steps=3000, align_until=0.7)
    check = 96
    compiles, both_sides = False, True
    pack = (
        *("value",) * 2,
        *("price",) * 2,
        *("cell",) * 2,
        *("ticked", "title", "count"),
        *("word",) * 4,
        *("where",) * 3,
    )
    long_pack = ("transcribe",) * 3
    lengths = (26, 58)
    weights = {"word": 3.0, "ticked": 1.5, "count": 2.0}
    fields = (
        Field("first", CLASSES),
        Field("second", (), unnamed=len(CLASSES)),
        *(Field(axis, tuple(f"{axis}{i}" for i in range(BINS))) for axis in "xy"),
    )
    flag, flags, width = "end and heading", 2, WIDTH
    head, tail = ("<s>", "<user>", "<|vision_start|>"), ("<|vision_end|>",)

    def show(self, pixels: np.ndarray) -> Image.Image:
        return Image.fromarray(pixels)

    def longest(self, kind: str) -> int:
        return {"transcribe": 48, "title": 20}.get(kind, 9)

    def measure(self, pairs: list[tuple[Question, str]]) -> dict[str, float]:
        """For places the mean IoU, for transcripts the mean share of wrong characters."""
        match pairs[0][0].type:
            case "where":
                return {"mean_box_iou": sum(tasks.box_iou(q.answer, a) for q, a in pairs) / len(pairs)}
            case "transcribe":
                return {"character_errors": sum(tasks.character_errors(q.answer, a) for q, a in pairs) / len(pairs)}
        return {}

    def cells(self) -> Iterator[dict[str, Any]]:
        """All methods of images where they stand by themselves, baselines and mergers inside the encoder and before it
        too, at original positions."""
        own = [name for name, cls in all_methods().items() if not ("video" in cls.kind or cls.decodes)]
        for keep in KEEPS:
            for method in own:
                for options in VARIANTS.get(method, [{}]):
                    yield {"method": method, "options": options, "keep": keep}

    def share(self, rng: np.random.Generator) -> tuple[int, int]:
        return choose_size(rng)

    def fit(self, size: int, shared: tuple[int, int]) -> int:
        """As many tokens in all as in a batch of small pages."""
        smallest, (width, height) = SIZES[0], shared
        return max(1, round(size * smallest[0] * smallest[1] / (width * height)))

    def lesson(self, rng: np.random.Generator, shared: tuple[int, int]) -> Lesson:
        """A type that the page cannot answer gives its place to one of `LOOKED_UP` that it can, else to a question for
        a place, or for a title where a block is to be transcribed."""
        page = make_page(rng, shared)
        packs = []
        for kinds, other in ((self.pack, "where"), (self.long_pack, "title")):
            asked = [ASK[kind](rng, page) for kind in kinds]
            own = [q.type for q in asked if q and q.type in LOOKED_UP]
            packs.append([q or ASK[pick(rng, own) or other](rng, page) for q in asked])
        return self._learn(page, *packs)

    def drill(self, rng: np.random.Generator, shared: tuple[int, int]) -> Lesson:
        """Three pages of four are full of lines in styles of their own, which teach most."""
        return self._learn((make_drill if rng.random() < DRILLED else make_page)(rng, shared))

    def _learn(self, page: Page, *packs: list[Question]) -> Lesson:
        owner, flags = labels(page)
        pixels = torch.tensor(page.pixels).permute(2, 0, 1) / 127.5 - 1
        return Lesson(
            pixels=pixels[None].to(torch.bfloat16),
            owner=owner[None],
            flags=flags[None],
            shown=torch.tensor([0]),
            asked=packs,
        )

    def tower(self, model: Qwen3VLForConditionalGeneration) -> nn.Module:
        return model.model.visual

    def projector(self, model: Qwen3VLForConditionalGeneration) -> nn.Module:
        visual = model.model.visual
        return nn.ModuleList([visual.merger, *visual.deepstack_merger_list])

    def see(self, model: Qwen3VLForConditionalGeneration) -> Callable[[Tensor], Seen]:
        """The features that the decoder reads, the mergers', each with flags. Not compiled: attention over thousands
        of patches is the work, and a fused kernel does that as it is."""

        def look(pixels: Tensor) -> Seen:
            tokens, planes = encode(model.model.visual, pixels)
            return Seen(tokens, tokens, planes)

        return look

    def rope(self, model: Qwen3VLForConditionalGeneration, pixels: Tensor, shared: Any) -> tuple[Tensor, Tensor]:
        counts = (len(self.pack), len(self.long_pack))
        return rope_of(model.model.language_model, pixels, list(zip(counts, self.lengths, strict=True)))


def labels(page: Page) -> tuple[Tensor, Tensor]:
    """int64 [n, 4] and float32 [n, 2]: fields and flags of every visual token, -1 for background."""
    height, width = (side // TOKEN for side in page.pixels.shape[:2])
    owner, flags = torch.full((height, width, 4), -1), torch.zeros(height, width, 2)
    seen = [
        (char, *centre, i == len(word.text) - 1, word.heading)
        for word in page.words
        for i, (char, centre) in enumerate(zip(word.text, word.centres, strict=True))
    ]
    seen += [(mark, x, y, True, False) for mark, x, y in page.marks]
    for char, x, y, last, heading in sorted(seen, key=lambda found: found[1]):
        row, column = min(int(y // TOKEN), height - 1), min(max(int(x // TOKEN), 0), width - 1)
        token, named = owner[row, column], CLASSES.index(char)
        if token[0] < 0:
            place = (int((column + 0.5) / width * BINS), int((row + 0.5) / height * BINS))
            token[:] = torch.tensor([named, -1, *place])
        elif token[1] < 0:
            token[1] = named
        flags[row, column] = torch.maximum(flags[row, column], torch.tensor([float(last), float(heading)]))
    return owner.flatten(0, 1), flags.flatten(0, 1)


PAGES = Pages()
