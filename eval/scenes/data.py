"""Training batches: pictures, patch labels and packed questions, each batch a pure function of its number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from eval.scenes.questions import ASK, TYPES, Question
from eval.scenes.world import COLOURS, KINDS, Scene, make_scene, rng_for
from eval.training import Endless

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
# Questions per picture. The types that hold a model back longest come more than once.
PACK = (
    *(["colour"] * 2 + ["shape", "digit"] + ["count"] * 6),
    *(["existence"] * 3 + ["position"] * 2 + ["relation"] * 3),
)
WEIGHTS = {"existence": 2.0, "caption": 2.0}
SHORT, LONG = 12, 20  # tokens of the longest short question with its answer, and of the longest caption


@dataclass
class Batch:
    """B pictures. `short` and `caption` are token ids [B, G, S]; `*_weight` weighs the loss of each id."""

    pixels: Tensor  # [B, 3, 96, 96] normalised
    owner: Tensor  # [B, 144, 4] kind, colour, x and y bin of the thing on each patch, -1 for background
    present: Tensor  # [B, kinds + colours] 1 where the scene holds it
    short: Tensor
    short_weight: Tensor
    caption: Tensor
    caption_weight: Tensor
    types: Tensor  # [B, G] index into TYPES of each short question


def ask_all(rng: np.random.Generator, scene: Scene) -> list[Question]:
    """One pack of short questions; a type that the scene cannot answer gives its place to a position question."""
    asked = [ASK[kind](rng, scene) for kind in PACK]
    return [q if q is not None else ASK["position"](rng, scene) for q in asked]


def encode(tokenizer: PreTrainedTokenizerFast, question: Question, length: int) -> tuple[list[int], list[float]]:
    """Ids of question, <assistant>, answer, </s>, padded; a loss weight on every id of the answer and on </s>."""
    head = tokenizer.convert_tokens_to_ids([*question.text.split(), "<assistant>"])
    tail = tokenizer.convert_tokens_to_ids([*question.answer.split(), "</s>"])
    pad = length - len(head) - len(tail)
    weight = WEIGHTS.get(question.type, 1.0)
    return head + tail + [tokenizer.pad_token_id] * pad, [0.0] * len(head) + [weight] * len(tail) + [0.0] * pad


class Batches(Endless):
    """Batches of pictures."""

    def batch(self, number: int) -> Batch:
        rows = [self._row(number * self.size + i) for i in range(self.size)]
        pixels, owner, present, short, short_weight, caption, caption_weight, types = zip(*rows, strict=True)
        scaled = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
        return Batch(
            pixels=(scaled - MEAN) / STD,
            owner=torch.from_numpy(np.stack(owner)).long(),
            present=torch.from_numpy(np.stack(present)).float(),
            short=torch.tensor(short),
            short_weight=torch.tensor(short_weight),
            caption=torch.tensor(caption),
            caption_weight=torch.tensor(caption_weight),
            types=torch.tensor(types),
        )

    def _row(self, index: int) -> tuple:
        rng = rng_for(self.split, index)
        scene = make_scene(rng)
        labels = np.array([(KINDS.index(t.kind), list(COLOURS).index(t.colour), *t.bin) for t in scene.things])
        owner = np.where(scene.owner[:, None] >= 0, labels[scene.owner], -1)
        present = np.zeros(len(KINDS) + len(COLOURS))
        present[labels[:, 0]] = present[len(KINDS) + labels[:, 1]] = 1
        asked = ask_all(rng, scene)
        short = [encode(self.tokenizer, q, SHORT) for q in asked]
        caption = encode(self.tokenizer, ASK["caption"](rng, scene), LONG)
        return (
            scene.pixels,
            owner,
            present,
            [ids for ids, _ in short],
            [weight for _, weight in short],
            [caption[0]],
            [caption[1]],
            [TYPES.index(q.type) for q in asked],
        )
