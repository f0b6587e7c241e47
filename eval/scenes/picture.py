"""Draws the bundled scene and the README's picture: `python -m eval.scenes.picture`."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt

from eval.results import RESULTS
from eval.scenes.world import make_scene, rng_for
from tokenprune import prune, scenes
from tokenprune.chat import Chat
from tokenprune.media.pictures import load_image
from tokenprune.overlay import draw_overlay

SCENE = 39
ASKED = ("what colour is the circle ?", "is there a green cross ?", scenes.QUESTION)
SHOWN = (("divprune", 0.1), ("divprune", 0.25), ("random", 0.1))


def main() -> None:
    """Write `scene.png` beside the model and `overview.png` beside the results."""
    matplotlib.use("agg")
    make_scene(rng_for("demo", SCENE)).image.save(scenes.IMAGE)
    chat, image = Chat.load(scenes.MODEL), load_image(scenes.IMAGE)
    prompts = [chat.inputs(image, question) for question in ASKED]
    large = image.resize((480, 480), 0)
    panels = [("all 144 visual tokens", large, [chat.answer(p, 8)[0] for p in prompts])]
    for method, keep in SHOWN:
        with prune(chat.model, method, keep=keep) as run:
            replies = [chat.answer(p, 8)[0] for p in prompts]
            title = f"{method}, {run.report().final_tokens} tokens"
            panels.append((title, draw_overlay(run, image), replies))
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 4.2))
    for axis, (title, picture, replies) in zip(axes, panels, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
        lines = [f"{q.removesuffix(' ?')}?  {a}" for q, a in zip(ASKED, replies, strict=True)]
        axis.text(0, 1.04, "\n".join(lines), transform=axis.transAxes, fontsize=9, va="top").set_y(-0.03)
    figure.tight_layout()
    figure.savefig(RESULTS / "overview.png", dpi=110)


if __name__ == "__main__":
    main()
