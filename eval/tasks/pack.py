"""The Scenes question sets as lmms-eval tasks: `python -m eval.tasks.pack --out runs/tasks`.

Writes a folder for `--include_path`: the held-out questions on pictures (`scenes`) and on clips (`scenes_video`) as
parquet, the clips as lossless MP4, and the task files.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from datasets import Dataset, Features, Image, Value
from rich.console import Console
from rich.progress import track

from eval.worlds.base import World
from eval.worlds.clips.video import write_video
from eval.worlds.clips.world import CLIPS
from eval.worlds.judge import questions
from eval.worlds.scenes.world import SCENES

HERE = Path(__file__).parent
LONGEST = {"scenes": 20, "scenes_video": 4}  # tokens that an answer may have


def pictures(count: int) -> Dataset:
    """`count` held-out questions of each type, by turns, each with its picture."""
    rows = []
    for turn in zip(*(questions(SCENES, kind, count) for kind in SCENES.types), strict=True):
        for asked in turn:
            stored = io.BytesIO()
            asked.shown.save(stored, "PNG")
            own = {"image": {"bytes": stored.getvalue(), "path": None}}
            rows.append(own | _row(asked.question))
    return _table(rows, image=Image())


def videos(count: int, folder: Path) -> Dataset:
    """The same about clips, whose files go to `folder`/clips."""
    (folder / "clips").mkdir(exist_ok=True)
    rows = []
    turns = list(zip(*(questions(CLIPS, kind, count) for kind in CLIPS.types), strict=True))
    for i, turn in enumerate(track(turns, description="clips", transient=True)):
        for asked in turn:
            name = f"clips/{asked.question.type}_{i:04}.mp4"
            frames = np.stack([np.asarray(frame) for frame in asked.shown.frames])
            write_video(folder / name, frames, "libx264rgb", "rgb24", crf="0")  # the same values come back
            rows.append({"video": name} | _row(asked.question))
    return _table(rows, video=Value("string"))


def _row(question: Any) -> dict[str, str]:
    return {"type": question.type, "question": question.text, "answer": question.answer}


def _table(rows: list[dict[str, Any]], **shown: Any) -> Dataset:
    words = {name: Value("string") for name in ("type", "question", "answer")}
    return Dataset.from_list(rows, features=Features(shown | words))


def write_task(name: str, world: World, folder: Path) -> None:
    """The task file of `folder`/`name`.parquet."""
    task = {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str((folder / f"{name}.parquet").resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": LONGEST[name], "temperature": 0, "do_sample": False, "until": []},
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("score", *world.types)
        ],
        "metadata": [{"version": 1.0}],
    }
    functions = {"doc_to_visual": "visual", "doc_to_text": "text", "doc_to_messages": "messages"}
    functions["process_results"] = "results"
    calls = "".join(f"{key}: !function utils.{value}\n" for key, value in functions.items())
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False) + calls)


def main(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("runs/tasks"),
    count: Annotated[int, typer.Option(min=1, help="Questions of each type.")] = 100,
    video_count: Annotated[int, typer.Option(min=1, help="Questions of each type about clips.")] = 40,
) -> None:
    """Write both question sets and their task files."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "utils.py", out / "utils.py")
    sets = {
        "scenes": (SCENES, pictures(count)),
        "scenes_video": (CLIPS, videos(video_count, out)),
    }
    for name, (world, table) in sets.items():
        table.to_parquet(out / f"{name}.parquet")
        write_task(name, world, out)
        Console().print(f"{name}: {len(table)} questions in {out}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
