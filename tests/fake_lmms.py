"""A model of the kind that lmms-eval has, which asks in batches of two, the later question first."""

from __future__ import annotations

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image

from tokenprune import scenes
from tokenprune.chat import Chat
from tokenprune.evaluation.lmms_eval.wrapped import Pruned


class Own(lmms):
    """Writes into the settings that it is handed, as some do, and answers nothing where something fails."""

    def __init__(self, pretrained: str = "scenes", batch_size: int = 2) -> None:
        super().__init__()
        self.chat, self.batch_size = Chat.load(pretrained), batch_size
        self.model = self.chat.model

    def generate_until(self, requests):
        found = {}
        order = list(reversed(range(len(requests))))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            rows = [requests[i].args for i in batch]
            turns = [shown(self.task_dict[task][split][number]) for *_, number, task, split in rows]
            settings = rows[0][1]
            settings["num_beams"] = 1
            inputs = self.chat.batch(turns)
            try:
                with torch.inference_mode():
                    ids = self.model.generate(**inputs, **settings, do_sample=False).tolist()
            except Exception as error:
                print(error)
                ids = [""] * len(batch)
            found |= {i: str(row) for i, row in zip(batch, ids, strict=True)}
        return [found[i] for i in range(len(requests))]

    def loglikelihood(self, requests):
        return self._tokens()

    def generate_until_multi_round(self, requests):
        return self._tokens()

    def _tokens(self):
        """Rows in the cache after a prompt."""
        inputs = self.chat.batch([shown(1)])
        with torch.inference_mode():
            return self.model(**inputs, use_cache=True).past_key_values.layers[0].keys.shape[2]


class Batched(Pruned, Own):
    """Documents 1 and 3 have two pictures."""

    tasks = {"pictures": {"test": [1, 2, 1, 2, 1]}}

    def __init__(self, **arguments) -> None:
        super().__init__(**arguments)
        self.task_dict = self.tasks


def shown(pictures):
    image = {"type": "image", "image": Image.open(scenes.IMAGE)}
    return [{"role": "user", "content": [*[image] * pictures, {"type": "text", "text": scenes.QUESTION}]}]


def request(number, settings):
    metadata = {"task": "pictures", "doc_id": number, "repeats": 1}
    arguments = ("", settings, None, number, "pictures", "test")
    return Instance("generate_until", arguments, 0, metadata)
