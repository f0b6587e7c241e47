"""Tiny models of further types whose pictures are squares of one size, alone or as tiles of a larger picture."""

from __future__ import annotations

from transformers import Ovis2Config, Ovis2ForConditionalGeneration, Qwen2Config

from tests.tiny.base import END, IMAGE, ROW1, ROW2, START, TEXT, TOWER, WHOLE
from tests.tiny.others import TinyInternVL


class TinyOvis2(TinyInternVL):
    """The whole and then the tiles, each behind an indicator that the model embeds by its visual vocabulary."""

    name = "ovis2"
    model_class = Ovis2ForConditionalGeneration
    cls = False

    def config(self):
        return Ovis2Config(
            text_config=Qwen2Config(**TEXT),
            vision_config=TOWER | dict(hidden_stride=2, vocab_size=48),
            image_token_id=IMAGE,
            visual_indicator_token_ids=[START, WHOLE, ROW1, ROW2, END],
            vocab_size=TEXT["vocab_size"],
            hidden_size=TEXT["hidden_size"],
        )

    def ids(self, part):
        tile = [IMAGE] * 9
        tiles = [START, *tile, WHOLE, *tile, ROW1, *tile, END]
        return tiles if self.count(part) == 3 else [START, *tile, WHOLE, END]
