"""The Scenes question sets as lmms-eval sees them: what is shown, what is asked, what is right.

lmms-eval loads this file by itself from the folder that `pack` writes, so it imports nothing of this repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NEAR = {"position": r"x(\d+)\s+y(\d+)", "when": r"^\s*t(\d+)\s*$"}  # numbers that may be off by one


def is_right(kind: str, reference: str, answer: str) -> bool:
    """Exact words, but: a position counts within one patch on both axes, a time within one step, a caption as an
    unordered list, a box from an IoU of a half on, a transcript up to one wrong character in ten."""
    if kind in NEAR:
        wanted, said = (re.search(NEAR[kind], text) for text in (reference, answer))
        pairs = zip(wanted.groups(), said.groups(), strict=True) if said else []
        return said is not None and all(abs(int(a) - int(b)) <= 1 for a, b in pairs)
    if kind == "where":
        return box_iou(reference, answer) >= 0.5
    if kind == "transcribe":
        return character_errors(reference, answer.strip()) <= 0.1
    if kind == "caption":
        return sorted(re.split(r"\s*,\s*", answer.strip())) == sorted(reference.split(" , "))
    return answer.split() == reference.split()


def box_iou(reference: str, answer: str) -> float:
    """IoU of two boxes in bins, both ends included, as `x2y3x5y4`; 0 where the answer is no box."""
    texts = (re.sub(r"\s", "", text) for text in (reference, answer))
    wanted, said = (re.fullmatch(r"x(\d+)y(\d+)x(\d+)y(\d+)", text) for text in texts)
    if wanted is None or said is None:
        return 0.0
    a, b = ([int(v) for v in found.groups()] for found in (wanted, said))
    w = max(0, min(a[2], b[2]) + 1 - max(a[0], b[0]))
    h = max(0, min(a[3], b[3]) + 1 - max(a[1], b[1]))
    areas = [max(0, x[2] + 1 - x[0]) * max(0, x[3] + 1 - x[1]) for x in (a, b)]
    return w * h / (sum(areas) - w * h)


def character_errors(reference: str, answer: str) -> float:
    """Insertions, deletions and substitutions over the reference's length."""
    row = list(range(len(answer) + 1))
    for i, wanted in enumerate(reference, 1):
        last, row[0] = row[0], i
        for j, said in enumerate(answer, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (wanted != said))
    return row[-1] / len(reference)


def visual(doc: dict[str, Any]) -> list[Any]:
    """The picture, or the path of the clip."""
    return [doc["image"].convert("RGB")] if "image" in doc else [str(FOLDER / doc["video"])]


def text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    return doc["question"]


def messages(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """One user turn of the chat protocol."""
    shown = {"type": "image" if "image" in doc else "video", "url": visual(doc)[0]}
    return [{"role": "user", "content": [shown, {"type": "text", "text": doc["question"]}]}]


def results(doc: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """The score over everything, and the one of this question's type."""
    right = float(is_right(doc["type"], doc["answer"], answers[0]))
    return {"score": right, doc["type"]: right}
