"""Every container and codec, by every reader: which frames come out, when, and which way up.

python -m eval.media.compare    # into eval/results/media.json
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from eval.media import clips
from eval.media.numbered import read
from eval.results import RESULTS
from tokenprune import BadInput, load_video
from tokenprune.media.readers import READERS

RESULT = RESULTS / "media.json"
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


def main() -> None:
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, path, first, total, rate in cases(Path(folder)):
            table[name] = {reader or "default": judged(path, reader, first, total, rate) for reader in (None, *READERS)}
    RESULT.write_text(json.dumps(table, indent=1) + "\n")
    wrong = [name for name, own in table.items() if any("wrong" in answer.values() for answer in own.values())]
    print(f"{len(table)} clips, wrong: {wrong or 'none'}")


if __name__ == "__main__":
    main()
