"""Every container and codec, by every reader: which frames come out, when, and which way up.

python -m eval.media.compare    # into eval/results/media.json and tokenprune/docs/media.md
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from eval.media import clips
from eval.media.numbered import read
from tokenprune import BadInput, load_video, markdown
from tokenprune.media.readers import READERS

ROOT = Path(__file__).parent.parent.parent
RESULT = ROOT / "eval" / "results" / "media.json"
PAGE = ROOT / "tokenprune" / "docs" / "media.md"
PICKS = 8


def expected(total: int) -> list[int]:
    """Numbers of the frames nearest to PICKS moments spread evenly; halves go to the earlier frame."""
    return [int(np.ceil(x - 0.5)) for x in np.linspace(0, total - 1, PICKS)]


def judged(path: Path, reader: str | None, first: int, total: int, rate: int) -> dict[str, Any]:
    """What a reader makes of a clip whose frames are numbered from `first` on: right, wrong, or refused."""
    try:
        clip = load_video(path, PICKS, reader=reader)
    except BadInput as error:
        return {"refused": str(error).replace(str(path), path.name)}
    numbers, turns = zip(*(read(np.asarray(frame)) for frame in clip.frames), strict=True)
    wanted = expected(total)
    spans = np.diff(clip.seconds) - np.diff(wanted) / rate
    found = {
        "order": None not in numbers and list(numbers) == sorted(numbers),
        "numbers": list(numbers) == [first + i for i in wanted] and clip.numbers == wanted and clip.total == total,
        "times": bool(np.abs(spans).max() < 0.002),
        "rotation": set(turns) == {0},
    }
    return {name: "right" if value else "wrong" for name, value in found.items()} | {"reader": clip.reader}


def cases(folder: Path) -> list[tuple[str, Path, int, int, int]]:
    """Name, file, number of the first frame that is shown, count, and rate of every clip."""
    found = []
    for ending, codecs in clips.WRITTEN.items():
        for codec in codecs:
            path = clips.write(folder / f"{codec}.{ending}", codec)
            found.append((f"{ending} {codec}", path, 0, clips.COUNT, clips.rate_of(codec)))
    for turn in clips.TURNS:
        path = clips.write(folder / f"{turn}.mp4", "libx264", turn=turn)
        found.append((f"mp4 libx264, display matrix: {turn}", path, 0, clips.COUNT, 10))
    source = folder / "libx264.mp4"
    for ending, shown in (("mp4", 27), ("mov", 27), ("mkv", 24)):
        path = clips.cut(source, folder / f"cut.{ending}", 24, 3)
        found.append((f"{ending} libx264, cut without encoding", path, shown, clips.COUNT - shown, 10))
    return found


def page(table: dict[str, Any]) -> str:
    """The table as Markdown: one row for each clip, one column for each reader."""
    lines = [
        "# Which videos are read\n",
        "Written by `python -m eval.media.compare`. Clips of frames that carry their own number, written by PyAV;",
        f"{PICKS} frames of each are read. Right: their order, numbers, times and rotation are.\n",
        markdown.table(
            ["container, codec", "default", *READERS],
            [[name, *map(_cell, own.values())] for name, own in table.items()],
            rest="---",
        ),
    ]
    return "\n".join(lines) + "\n"


def _cell(answer: dict[str, Any]) -> str:
    if "refused" in answer:
        found = re.search(r"\((.*?)\)", answer["refused"])
        return "refused" + (f": {found[1]}" if found else "")
    wrong = [name for name, value in answer.items() if value == "wrong"]
    return f"**wrong**: {', '.join(wrong)}" if wrong else "right"


def main() -> None:
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, path, first, total, rate in cases(Path(folder)):
            table[name] = {reader or "default": judged(path, reader, first, total, rate) for reader in (None, *READERS)}
    RESULT.write_text(json.dumps(table, indent=1) + "\n")
    PAGE.write_text(page(table))
    wrong = [name for name, own in table.items() if any("wrong" in answer.values() for answer in own.values())]
    print(f"{len(table)} clips, wrong: {wrong or 'none'}")


if __name__ == "__main__":
    main()
