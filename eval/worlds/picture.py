"""Draws the bundled scene, the README's picture and the bundled clip: `python -m eval.worlds.picture`."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from eval.results import RESULTS
from eval.worlds.clips.video import write_video
from eval.worlds.clips.world import CLIPS
from eval.worlds.scenes.world import SCENES
from tokenprune import prune, scenes
from tokenprune.chat import Chat
from tokenprune.explain.overlay import draw_overlay
from tokenprune.media.pictures import load_image

SCENE, CLIP = 39, 7  # of the demo split
SCALE = 2  # of the clip's file to what the model sees
ASKED = ("what colour is the circle ?", "is there a green cross ?", scenes.QUESTION)
SHOWN = (("divprune", 0.1), ("divprune", 0.25), ("random", 0.1))


def draw_overview() -> None:
    """The bundled scene with all of its tokens and with a few of them, and what the model answers."""
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


def main() -> None:
    """Write `scene.png` and `clip.mp4` beside the models and `overview.png` beside the results."""
    matplotlib.use("agg")
    SCENES.draw(SCENES.rng("demo", SCENE)).image.save(scenes.IMAGE)
    pixels = CLIPS.draw(CLIPS.rng("demo", CLIP)).pixels
    large = np.kron(pixels, np.ones((1, SCALE, SCALE, 1), np.uint8))
    write_video(scenes.VIDEO, large, "libx264", "yuv444p", crf="20", preset="veryslow")
    draw_overview()


if __name__ == "__main__":
    main()
